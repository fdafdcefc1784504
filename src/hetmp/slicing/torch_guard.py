"""What torch would do with a sliced model that is wrong: refused before it begins.

``torch.save`` opens its file and pickles afterwards: what was there before would be lost, and a
piece of a file would stay. ``torch.compile`` puts exchanges into graphs that differ between the
ranks. ``DistributedDataParallel`` makes all ranks' slices those of rank 0, ``DataParallel`` runs
exchanges in threads.
"""

from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hetmp.cluster import AgreedError
from hetmp.slicing.model import SlicedModel
from hetmp.slicing.pickling import held_in

_COMPILED = (
    "torch.compile cannot take a sliced model, whose exchanges between the ranks are part of no "
    "graph: call the model as it is"
)
_REPLICATED = (
    "{} cannot take a sliced model, whose slices are one model together and not copies of one: "
    "leave it out, the ranks need no other reduction"
)


@cache
def guard_torch() -> None:
    """Let torch's own functions, from now on, refuse a sliced model that they would get wrong."""
    _wrap(torch, "save", 0, "obj", _check_saved)
    _wrap(torch, "compile", 0, "model", partial(_check, refusal=_COMPILED))
    for kind in (nn.DataParallel, DistributedDataParallel):
        refusal = _REPLICATED.format(kind.__name__)
        _wrap(kind, "__init__", 1, "module", partial(_check, refusal=refusal))


def _wrap(home: Any, name: str, place: int, argument: str, check: Callable[[Any], None]) -> None:
    """Put a function into the place of *home*'s that checks an argument, then calls it.

    Args:
        home: a module or class.
        name: of its function.
        place: of the argument.
        argument: its name.
        check: raises for a value that is refused.
    """
    function = getattr(home, name)

    @wraps(function)
    def refusing(*args: Any, **kwargs: Any) -> Any:
        check(args[place] if len(args) > place else kwargs.get(argument))
        return function(*args, **kwargs)

    setattr(home, name, refusing)


def _check_saved(value: Any) -> None:
    for part in held_in(value):
        part.__reduce_ex__(2)


def _check(value: Any, refusal: str) -> None:
    value = getattr(value, "__self__", value)  # a method of it, as model.compile() gives
    if isinstance(value, nn.Module) and any(isinstance(m, SlicedModel) for m in value.modules()):
        raise AgreedError(refusal)
