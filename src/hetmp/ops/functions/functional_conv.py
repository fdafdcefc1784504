"""Convolutions whose weight no layer owns, so that no plan names it.

It comes from activations, or each filter from all of them; what is computed filter by filter has
a layer (``layers/computed.py``). The weight is whole on every rank, like all values computed from
replicated parameters; a rank computes filters in proportion to the input channels that it holds.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from hetmp.cluster import Group
from hetmp.core.state import FULL, L, OperandState, Sliced, States
from hetmp.ops.call import Call, Flow, Function, OperatorRun, Ref
from hetmp.ops.rule import Rule
from hetmp.ops.spared import with_zeros

_TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)

_GROUPS = 6
"""The place of ``groups`` among the arguments of every convolution."""


class GivenWeight(Rule):
    """Weights (out, in / groups, ...), or of ``conv_transpose`` (in, out / groups, ...).

    Full input -> this rank's filters; with groups, a slice's groups -> the filters of these groups.
    """

    functions = (torch.conv1d, torch.conv2d, torch.conv3d, *_TRANSPOSED, F.linear)

    def unfit(self, call: Call) -> str | None:
        if len(_names(call)) < 2:
            return "its weight is not a tensor"
        return None if _groups(call) else "its groups are not known before it runs"

    def flow(self, call: Call, states: States[L]) -> Flow[L] | None:
        (x, weight), bias = _names(call)[:2], _names(call)[2:]
        source, axis, groups = states[x], _axis(call), _groups(call) or 1
        if not isinstance(source, Sliced) or source.axis != axis or len(states) != 2 + len(bias):
            return None
        out = call.result.shape[axis]
        if out is None:
            return None
        if groups == 1:
            result = Sliced(source.layout.like(out), axis)
            cut = Sliced(result.layout, int(call.target in _TRANSPOSED))
            wants: dict[str, OperandState[L]] = {x: FULL, weight: cut}
        else:
            units = source.layout.grouped(source.layout.total // groups)
            if units is None:
                return None
            result = Sliced(units.scaled(out // groups), axis)
            filters = source if call.target in _TRANSPOSED else result
            wants = {x: source, weight: Sliced(filters.layout, 0)}
        wants.update(dict.fromkeys(bias, Sliced(result.layout, 0)))
        return Flow(wants, result)

    def function(self, run: OperatorRun, group: Group) -> Function:
        target, call = run.target, run.call
        if not isinstance(target, Sliced):
            return super().function(run, group)
        groups, count = _groups(call) or 1, target.layout.counts[group.rank]
        per_group = target.layout.total // groups if groups > 1 else 1
        # torch refuses zero filters: one group of zeros is computed instead, and dropped.
        mine = max(1, count // per_group) if groups > 1 else 1

        def convolve(*args: object, **kwargs: object) -> Tensor:
            if count == 0:
                args, kwargs = _filled(run, args, kwargs)
            if groups > 1:
                args, kwargs = _with_groups(args, kwargs, mine)
            result: Tensor = call.invoke(args, kwargs)
            return result if count else result.narrow(target.axis, 0, 0)

        return convolve


def _names(call: Call) -> list[str]:
    """Return the names of input, weight and bias, if there is one."""
    arguments = (call.argument(*at) for at in enumerate(("input", "weight", "bias")))
    return [item.name for item in arguments if isinstance(item, Ref)]


def _groups(call: Call) -> int | None:
    """Return the number of groups, from the sizes: it may be given as ``x.shape[1]``."""
    if call.target is F.linear:
        return 1
    each = call.values[_names(call)[1]].shape[1]
    split = call.result if call.target in _TRANSPOSED else call.operand
    channels = split.shape[_axis(call)]
    return channels // each if channels and each else None


def _axis(call: Call) -> int:
    return call.operand.dims - 1 if call.target is F.linear else 1


def _with_groups(
    args: tuple[object, ...], kwargs: dict[str, object], groups: int
) -> tuple[tuple[object, ...], dict[str, object]]:
    if len(args) > _GROUPS:
        return (*args[:_GROUPS], groups, *args[_GROUPS + 1 :]), kwargs
    return args, {**kwargs, "groups": groups}


def _filled(
    run: OperatorRun, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Add one group of zeros to the arguments, on every axis that has no index here."""
    call, groups = run.call, _groups(run.call) or 1
    sizes = dict.fromkeys(_names(call), 1)
    if groups > 1:
        for name, state in run.flow.wants.items():
            sizes[name] = state.layout.total // groups  # type: ignore[union-attr]
    cut = {name: state.axis for name, state in run.flow.wants.items() if isinstance(state, Sliced)}

    def fill(item: object, asked: object) -> object:
        if isinstance(item, Tensor) and isinstance(asked, Ref) and asked.name in cut:
            return with_zeros(item, cut[asked.name], sizes[asked.name])
        return item

    return (
        tuple(fill(item, asked) for item, asked in zip(args, call.args, strict=True)),
        {key: fill(item, call.kwargs[key]) for key, item in kwargs.items()},
    )
