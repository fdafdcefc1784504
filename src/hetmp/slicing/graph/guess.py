"""An input that a module takes, guessed from its layers where no example is given."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hetmp.ops import rule_for
from hetmp.slicing.graph.meta_run import without_data

SIDES = (32, 64, 28, 224, 256, 96, 128, 299, 48, 40, 16, 8, 9, 12, 10, 7, 6, 5, 4, 20, 24)
"""The image sides that are tried."""

_BATCH = 2

_FIRST_LAYERS = 3
"""How many of the module's layers are taken for the one that comes first."""


def guess_input(skeleton: nn.Module, name: str) -> Mapping[str, Tensor]:
    """Return an input that *skeleton* runs on, by its *name*; nothing where none is guessed.

    It is run on the meta device, a copy of it: on the sizes that its first layers demand, and on
    images of usual sides.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in skeleton.parameters()}
    own = copy.deepcopy(skeleton, memo).eval()
    with without_data():
        for shape, dtype in _shapes(skeleton):
            batch = torch.empty(shape, dtype=dtype)
            try:
                own(batch)
            except Exception:
                continue
            return {name: batch}
    return {}


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
        for side in SIDES if dims > 2 else (1,):
            yield (_BATCH, channels, *[side] * (dims - 2)), dtype
