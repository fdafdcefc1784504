"""Networks of which only shapes are needed: on the meta device, where they take no memory.

A user's constructor that looks at values (``rate.item()``) cannot run there. It runs on the CPU,
and its parameters then leave memory again.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hetmp.core.errors import HetmpError
from hetmp.models import user
from hetmp.models.registry import build


def outline(
    name: str,
    input_shape: Sequence[int],
    classes: int,
    *,
    batch_size: int = 2,
    dtype: str,
    say: Callable[[str], object],
) -> tuple[nn.Module, Tensor]:
    """Return the network *name* and a batch for it, without values in its parameters.

    Args:
        name, input_shape, classes: as for `build`.
        batch_size: of the batch, (batch_size, *input_shape).
        dtype: of both, by torch's name.
        say: is called with a line for the user where the network is built on the CPU.

    Raises:
        HetmpError: as `build`, or the user's function fails.
    """
    kind = getattr(torch, dtype)
    module, why = try_on_meta(name, input_shape, classes)
    if module is None:
        module = without_parameters(built_on_cpu(name, input_shape, classes))
        say(on_cpu_line(name, why))
    return module.to(kind), torch.empty((batch_size, *input_shape), dtype=kind, device="meta")


def on_cpu_line(name: str, why: str) -> str:
    """Return the line that says that *name* is built on the CPU, and *why*."""
    return f"{name} cannot be built without values ({why}): built on the CPU"


def try_on_meta(
    name: str, input_shape: Sequence[int], classes: int
) -> tuple[nn.Module | None, str]:
    """Build the network *name* on the meta device.

    Returns:
        The network; or None and what a user's function raised, with its line. torch's generator
        then stands where it stood before.

    Raises:
        HetmpError: as `build`; a user's function is not called then.
    """
    if ":" in name:
        user.import_function(name)  # what its module makes when it is imported has values
    state = torch.get_rng_state()
    try:
        with torch.device("meta"):
            return build(name, input_shape, classes), ""
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, TypeError) else error
        if ":" not in name or isinstance(cause, HetmpError):
            raise
        torch.set_rng_state(state)
        return None, _described(cause)


def built_on_cpu(name: str, input_shape: Sequence[int], classes: int, seed: int = 0) -> nn.Module:
    """Build the network *name* on the CPU, from *seed*; torch's generator stays as it is.

    Raises:
        HetmpError: as `build`, or the user's function fails; the message names the line.
    """
    with torch.random.fork_rng(devices=()), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        try:
            return build(name, input_shape, classes)
        except HetmpError:
            raise
        except Exception as error:
            raise HetmpError(f"model {name!r} cannot be built: {_described(error)}") from error


def _described(error: BaseException) -> str:
    """Return the type, the first sentence and the line of the user's of *error*."""
    said = (str(error).splitlines() or [""])[0].split(". ")[0].rstrip(".")
    return f"{type(error).__name__}: {said}{user.at_line(error)}"


def tensor_bytes(module: nn.Module) -> int:
    """Return the bytes of the parameters and buffers of *module*."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def without_parameters(module: nn.Module) -> nn.Module:
    """Copy *module* with its parameters on the meta device. All else keeps its values."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        if not isinstance(parameter, nn.parameter.UninitializedParameter):
            meta = parameter.detach().to("meta")
            memo[id(parameter)] = nn.Parameter(meta, requires_grad=parameter.requires_grad)
    return copy.deepcopy(module, memo)
