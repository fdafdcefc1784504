"""An input that a module takes, guessed from its layers where no example is given."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from hetmp.ops import generators_kept, rule_for
from hetmp.slicing.graph.meta_run import without_data
from hetmp.slicing.graph.shapes import SIDES

_SIDES = tuple(dict.fromkeys((32, 64, 28, *SIDES)))
"""The image sides that are tried: small ones first, since each is run."""

_BATCH = 2

_FEW = 3
"""How many sizes are tried on zeros, where every try computes."""

_FIRST_LAYERS = 3
"""How many of the module's layers are taken for the one that comes first."""


def guess_input(skeleton: nn.Module, name: str) -> Mapping[str, Tensor]:
    """Return an input that *skeleton* runs on, by its *name*; nothing where none is guessed.

    A copy of it is run on the sizes that its first layers demand, and on images of usual sides: on
    the meta device, and where that fails, since the module looks at devices or at values, on
    zeros, which take no memory.
    """
    tried = list(_shapes(skeleton))
    with generators_kept(), without_data():
        shape = _first_fit(skeleton, tried, lambda x: x)
    if shape is None:
        with generators_kept(), torch.no_grad():
            shape = _first_fit(skeleton, tried[:_FEW], _zeros)
    return {} if shape is None else {name: torch.empty(shape[0], dtype=shape[1], device="meta")}


def _first_fit(
    skeleton: nn.Module,
    tried: Sequence[tuple[tuple[int, ...], torch.dtype]],
    values: Callable[[Tensor], Tensor],
) -> tuple[tuple[int, ...], torch.dtype] | None:
    """Return the first (shape, dtype) that *skeleton* runs on, with *values* for its tensors."""
    tensors = (*skeleton.parameters(), *skeleton.buffers())
    memo: dict[int, object] = {id(tensor): values(tensor) for tensor in tensors}
    own = copy.deepcopy(skeleton, memo).eval()
    for shape, dtype in tried:
        try:
            own(values(torch.empty(shape, dtype=dtype, device="meta")))
        except Exception:
            continue
        return shape, dtype
    return None


def _zeros(x: Tensor) -> Tensor:
    """Return zeros of the shape of *x* that take no memory."""
    zeros = torch.zeros((), dtype=x.dtype).expand(x.shape)
    return nn.Parameter(zeros, requires_grad=False) if isinstance(x, nn.Parameter) else zeros


def _shapes(skeleton: nn.Module) -> Iterator[tuple[tuple[int, ...], torch.dtype]]:
    """Yield the shapes that are tried: (n, c, *sides), or (n, features)."""
    demanded: dict[tuple[int, int], torch.dtype] = {}
    for layer in skeleton.modules():
        rule = rule_for(layer)
        channels = None if rule is None else rule.input_channels(layer)
        if rule is None or channels is None or len(demanded) == _FIRST_LAYERS:
            continue
        dims = rule.input_dims(layer) or (2 if rule.mixes else 4)
        dtype = next((p.dtype for p in layer.parameters()), torch.get_default_dtype())
        demanded.setdefault((dims, channels), dtype)
    for (dims, channels), dtype in demanded.items():
        for side in _SIDES if dims > 2 else (1,):
            yield (_BATCH, channels, *[side] * (dims - 2)), dtype
