"""``init_``: new values for a sliced model, drawn as for the module that it was made of."""

import copy
import pickle
import random
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hetmp.cluster import AgreedError, Group
from hetmp.core.errors import HetmpError
from hetmp.exchange import collect, distribute, plain_tensors
from hetmp.slicing.attributes import Attributes
from hetmp.slicing.graph.parametrized import norms_of_old
from hetmp.slicing.model import SlicedModel
from hetmp.slicing.table import tensors_of

_READERS: tuple[Callable[[], Any], ...] = (
    lambda: torch.get_rng_state().numpy(),
    np.random.get_state,
    random.getstate,
)
_WRITERS: tuple[Callable[[Any], Any], ...] = (
    lambda state: torch.set_rng_state(torch.from_numpy(state.copy())),
    np.random.set_state,
    random.setstate,
)


def init_(model: SlicedModel, function: Callable[[nn.Module], Any]) -> SlicedModel:
    """Give a sliced model the values that ``module.apply(function)`` gives the unsliced module.

    Collective. Rank 0 applies *function* to the whole module, on the CPU, with the current values
    and from its own random generators; every rank then takes its share, in place. So rank 0 holds
    the whole module for that time. Generators (torch's of the CPU, NumPy's, Python's) that were
    equal on all ranks before are equal afterwards; others are left as they were, but for rank 0's.

    Args:
        model: made by ``slice_model``.
        function: called with every module of the user's, children first, as ``apply`` does. It
            changes values of parameters and buffers, and nothing else.

    Returns:
        The model.

    Raises:
        HetmpError: on every rank: *function* raised, or changed anything but values; no value has
            changed then.
    """
    if not isinstance(model, SlicedModel):
        raise HetmpError(
            f"init_ takes a model made by hetmp.slice_model, got {type(model).__name__}: call its "
            "own apply(function)"
        )
    runtime = model.hetmp
    group, local = runtime.group, tensors_of(model)
    alike = _alike(group)
    whole: dict[str, Tensor] = {}
    with plain_tensors(), torch.no_grad():
        copied = _whole_module(model, local)
        with torch.enable_grad(), group.together():
            if copied is not None:
                whole = _applied(copied, function)
        for entry in runtime.table.values():
            if entry.alias_of is None:
                distribute(group, whole.get(entry.name), local[entry.name], entry.state)
    if runtime.same_draws is not None:
        runtime.same_draws.trust(model)
    _share_generators(group, alike)
    return model


def _whole_module(model: SlicedModel, local: dict[str, Tensor]) -> nn.Module | None:
    """Return the user's module with all values, on rank 0. Collective, one tensor at a time."""
    group, table, home = model.hetmp.group, model.hetmp.table, model.home
    assert isinstance(home, Attributes)
    original = home.original
    known, memo = tensors_of(original), {}
    if known.keys() != table.keys():  # for a layer that computes its weight in its own way
        other = next(name for name in (*known, *table) if (name in known) != (name in table))
        raise AgreedError(
            f"init_ cannot give values to {other!r}, which the module and the sliced model do not "
            "both have: give the module its values, and slice it then"
        )
    for entry in table.values():
        if entry.alias_of is not None:
            continue
        own = local[entry.name]
        value: Any = collect(group, own, entry.shape, entry.state, 0)
        if value is not None:
            stands_for = known[entry.name]
            parameter = isinstance(stands_for, nn.Parameter)
            memo[id(stands_for)] = nn.Parameter(value, own.requires_grad) if parameter else value
    if not group.is_root:
        return None
    copied = copy.deepcopy(original, memo)
    for layer in copied.modules():
        for norm in norms_of_old(layer):  # the weight that it computed last is on the meta device
            kept = getattr(layer, norm.name)
            setattr(layer, norm.name, norm.compute_weight(layer).to(kept.dtype))
    return copied


def _applied(module: nn.Module, function: Callable[[nn.Module], Any]) -> dict[str, Tensor]:
    """Apply *function* and return all tensors; refuse what cannot be brought to the slices."""
    before, tensors = _facts(module), tensors_of(module)
    module.apply(function)
    after = _facts(module)
    for what in (*before, *(name for name in after if name not in before)):
        if before.get(what) != after.get(what):
            raise HetmpError(
                f"the function given to init_ changed {what}: it may change values of parameters "
                "and buffers alone; do the rest to the module, before slice_model"
            )
    return tensors


def _facts(module: nn.Module) -> dict[str, object]:
    """Return what *function* must leave as it is, by a name for the reader."""
    facts: dict[str, object] = {}
    for name, tensor in tensors_of(module).items():
        facts[repr(name)] = id(tensor)
        facts[f"the shape of {name!r}"] = tensor.shape
        facts[f"the dtype of {name!r}"] = tensor.dtype
        facts[f"requires_grad of {name!r}"] = tensor.requires_grad
    for path, layer in module.named_modules(remove_duplicate=False):
        facts[f"module {path!r}"] = id(layer)
        for name, value in vars(layer).items():
            if isinstance(value, bool | int | float | str | tuple | type(None)):
                facts[f"{name!r} of {path!r}"] = repr(value)
    return facts


def _alike(group: Group) -> list[bool]:
    """Return which generators are in one state on all ranks. Collective."""
    own = np.array([zlib.crc32(pickle.dumps(read())) for read in _READERS])
    marks = group.allgather(own, "states of the generators")
    return [bool((column == column[0]).all()) for column in marks.T]


def _share_generators(group: Group, alike: list[bool]) -> None:
    """Give all ranks rank 0's generators, where they were *alike* before. Collective."""
    states = np.frombuffer(pickle.dumps([read() for read in _READERS]), dtype=np.uint8)
    size = int(group.broadcast(np.array([states.size]))[0])
    states = group.broadcast(states.copy() if group.is_root else np.empty(size, dtype=np.uint8))
    for write, state, equal in zip(_WRITERS, pickle.loads(states.tobytes()), alike, strict=True):
        if equal and not group.is_root:
            write(state)
