"""An optimizer's state as datasets, by the parameter that it belongs to."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetmp.checkpoint.catalog import Stored
from hetmp.checkpoint.format import OPTIMIZER, escaped, stored_dtype, unescaped
from hetmp.checkpoint.items import Item, as_stored, dtype_name, tensor_item
from hetmp.cluster import AgreedError, Group
from hetmp.core.errors import HetmpError
from hetmp.core.state import State
from hetmp.slicing import SlicedModel
from hetmp.slicing.step_shares import step_share, whole_of_steps

Optimizer = torch.optim.Optimizer


def optimizer_items(model: SlicedModel, optimizer: Optimizer) -> Iterator[Item]:
    """Yield ``/optimizer/<parameter>/<state>`` for all state of the optimizer. Collective.

    What has the parameter's shape is cut as the parameter is; numbers are kept as such.

    Raises:
        AgreedError: a parameter of another model, or state of another shape.
    """
    group, table = model.hetmp.group, model.hetmp.table
    with group.together():
        own = {
            name: {key: _described(name, key, value, parameter) for key, value in state.items()}
            for name, parameter, state in _states(model, optimizer)
        }
    known = _union(group, own)
    held = {name: state for name, _, state in _states(model, optimizer)}
    parameters = stepped(model, optimizer)
    for name, keys in known.items():
        for key, entry in keys.items():
            path = f"{OPTIMIZER}/{escaped(name)}/{escaped(key)}"
            if "value" in entry:
                number = np.asarray(entry["value"]).astype(stored_dtype(entry["dtype"]))
                yield Item(path, (), entry["dtype"], None, number)
                continue
            value = held.get(name, {}).get(key)
            parameter, cut = parameters[name]
            if value is None:  # nothing of the parameter is here, so no step was made
                value = torch.zeros_like(parameter, dtype=getattr(torch, entry["dtype"]))
            yield tensor_item(path, table[name].shape, cut, value)


def settings(model: SlicedModel, optimizer: Optimizer) -> str:
    """Return the optimizer's class and the options of its groups, as JSON.

    Raises:
        HetmpError: an option that JSON has no form for.
    """
    names = _names(model)
    groups = [
        {
            **{key: _plain(value) for key, value in group.items() if key != "params"},
            "params": [_name(names, parameter) for parameter in group["params"]],
        }
        for group in optimizer.param_groups
    ]
    try:
        return json.dumps({"class": type(optimizer).__name__, "groups": groups})
    except TypeError as error:
        raise HetmpError(f"an option of the optimizer cannot be saved: {error}") from None


def restore_settings(model: SlicedModel, optimizer: Optimizer, text: str) -> None:
    """Set the options of the groups as they were saved. Not collective.

    Args:
        model: the sliced model whose parameters the *optimizer* updates.
        text: the JSON of ``settings``.

    Raises:
        HetmpError: an optimizer of another class, or with other groups.
    """
    saved = json.loads(text)
    if saved["class"] != type(optimizer).__name__:
        raise HetmpError(
            f"the checkpoint has the state of {saved['class']}, the optimizer is "
            f"{type(optimizer).__name__}: give one of the same class, or load without an optimizer"
        )
    names = _names(model)
    groups = [[_name(names, p) for p in group["params"]] for group in optimizer.param_groups]
    if groups != [group["params"] for group in saved["groups"]]:
        raise HetmpError(
            f"the optimizer's groups have {', '.join(str(len(g)) for g in groups)} parameters, "
            "those of the checkpoint "
            f"{', '.join(str(len(g['params'])) for g in saved['groups'])}, or different ones: "
            "make the same groups in the same order"
        )
    for group, options in zip(optimizer.param_groups, saved["groups"], strict=True):
        for key, value in options.items():
            if key == "params":
                continue
            if isinstance(group.get(key), Tensor):
                group[key].fill_(value)
            else:
                group[key] = tuple(value) if isinstance(group.get(key), tuple) else value


def stepped(model: SlicedModel, optimizer: Optimizer) -> dict[str, tuple[Tensor, State]]:
    """Return what this rank steps of each parameter, and how the whole is cut for that, by name.

    The parameter as the rank holds it; rows of it where the ranks share the steps.
    """
    table = model.hetmp.table
    tensors: dict[str, tuple[Tensor, State]] = {
        name: (parameter, table[name].state) for name, parameter in model.named_parameters()
    }
    names = _names(model)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            share = step_share(parameter)
            if share is not None:
                tensors[_name(names, parameter)] = parameter, share.state
    return tensors


def state_targets(
    parameters: Mapping[str, tuple[Tensor, State]], below: Mapping[str, Stored]
) -> Iterator[tuple[str, str, Tensor, State, Stored]]:
    """Yield (parameter, key, tensor, its cut, dataset) for each dataset of ``/optimizer``.

    Args:
        parameters: what ``stepped`` returns.
        below: the datasets there, by path below ``/optimizer``.

    Raises:
        HetmpError: state of a parameter that the model does not have.
    """
    for path, stored in below.items():
        name, _, key = path.partition("/")
        if unescaped(name) not in parameters:
            raise HetmpError(
                f"the checkpoint has optimizer state for {unescaped(name)!r}, which is not a "
                "parameter of this model"
            )
        tensor, cut = parameters[unescaped(name)]
        yield unescaped(name), unescaped(key), tensor, cut, stored


def _states(
    model: SlicedModel, optimizer: Optimizer
) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    names = _names(model)
    for parameter, state in optimizer.state.items():
        yield _name(names, parameter), parameter, {k: v for k, v in state.items() if v is not None}


def _described(name: str, key: str, value: Any, parameter: Tensor) -> dict[str, Any]:
    """Describe a state to the other ranks: its dtype, and its value if it is a number."""
    if isinstance(value, bool | int | float):
        kind = {bool: "bool", int: "int64", float: "float64"}[type(value)]
        return {"dtype": kind, "value": value}
    if isinstance(value, Tensor):
        stored_dtype(dtype_name(value.dtype))
        if value.shape == parameter.shape and parameter.dim():
            return {"dtype": dtype_name(value.dtype)}
        if value.dim() == 0:
            return {"dtype": dtype_name(value.dtype), "value": as_stored(value).item()}
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise HetmpError(
        f"the optimizer's {key!r} of {name} ({shape}) is neither a number nor of the parameter's "
        "shape: hetmp cannot assemble it from slices"
    )


def _union(group: Group, own: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Merge the descriptions of all ranks' states, rank 0 first. Collective."""
    merged: dict[str, dict[str, Any]] = {}
    for text in group.gather_texts(json.dumps(own)):
        for name, keys in json.loads(text).items():
            for key, entry in keys.items():
                before = merged.setdefault(name, {}).setdefault(key, entry)
                if before["dtype"] != entry["dtype"] or ("value" in before) != ("value" in entry):
                    raise AgreedError(f"the optimizer's {key!r} of {name} differs between ranks")
    return merged


def _names(model: SlicedModel) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _name(names: Mapping[int, str], parameter: Tensor) -> str:
    parameter = whole_of_steps(parameter)
    if id(parameter) not in names:
        raise HetmpError(
            "the optimizer has a parameter that is not the sliced model's: make it from "
            "model.parameters() after slice_model"
        )
    return names[id(parameter)]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
