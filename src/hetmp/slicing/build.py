"""``slice_model``: read -> plan -> schedule -> this rank's layers -> rank 0's values."""

import copy
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hetmp.cluster import Group
from hetmp.core.errors import HetmpError
from hetmp.core.partition import checked_weights
from hetmp.core.state import Sliced
from hetmp.exchange import distribute, share_of
from hetmp.ops import fresh_tensors, initial_value, known_layers, mapped
from hetmp.slicing.attributes import Attributes, settle
from hetmp.slicing.block import block_of
from hetmp.slicing.channel_groups import plan_from_weights
from hetmp.slicing.graph import (
    ModelGraph,
    as_users_class,
    check_kind,
    on_meta,
    read_graph,
    skeleton_of,
)
from hetmp.slicing.hooks import HookedParts
from hetmp.slicing.model import RESERVED, SlicedModel
from hetmp.slicing.optimizer_guard import guard
from hetmp.slicing.orders import step_key
from hetmp.slicing.plan import Backward, Plan
from hetmp.slicing.runtime import Runtime
from hetmp.slicing.schedule import CallStep, ProgramStep, Schedule
from hetmp.slicing.scheduler import schedule_model
from hetmp.slicing.share_text import describe_share
from hetmp.slicing.shares import SameDraws, label
from hetmp.slicing.table import SlicedTensor, Table, make_table, tensors_of
from hetmp.slicing.torch_guard import guard_torch
from hetmp.slicing.tuning import Tuning
from hetmp.slicing.verification import NOT_ASKED, UnverifiedWarning, Verification
from hetmp.slicing.verification import verify as verify_graph

if TYPE_CHECKING:
    from mpi4py import MPI

Init = Callable[[str, torch.Size, torch.Generator], Tensor]
"""(parameter's name, whole shape, generator) -> whole tensor."""


def slice_model(
    module: nn.Module,
    weights: Sequence[float] | Plan,
    comm: "MPI.Intracomm | None" = None,
    *,
    schemes: str | Mapping[str, str] | None = None,
    backward: Mapping[str, Backward | None] | None = None,
    example_input: Any = None,
    init: Init | None = None,
    device: torch.device | str | None = None,
    strict: bool = False,
    tuning: Tuning | None = None,
    verify: bool = True,
) -> SlicedModel:
    """Slice *module* over the ranks of *comm*: the same network, each rank holding a share of it.

    Collective. Give it the same module and the same weights on every rank; the values of its
    parameters and buffers are taken from rank 0, and the module is left as it was.

    Args:
        module: any module that torch.fx can trace.
        weights: the ranks' relative speeds, one per rank, or a ``Plan``.
        comm: the ranks that share the model; ``MPI.COMM_WORLD`` if None.
        schemes: of the layers that mix channels, where *weights* are numbers: ``filters`` (the
            default), ``batch``, ``batch:K`` for the first K of them, or a scheme by a layer's path.
        backward: what the backward pass has of layers: ``keep``, ``regather`` or ``recompute``, by
            path or pattern, instead of what a plan says of these: see ``Plan.with_backward``.
        example_input: a tensor of a batch's shape, or a tuple or dict of arguments; needed only
            where the module has several inputs, or its layers do not tell the sizes that
            slicing depends on. Values are not looked at.
        init: for a module on the meta device: ``init(name, shape, generator)`` gives each
            parameter's whole value. It is called on every rank, for one parameter at a time,
            with a generator that depends on torch's seed on rank 0 and on the name, never on
            the number of ranks; each rank keeps its slice.
        device: where this rank computes; the module's own device if None.
        strict: refuse operations that hetmp has no rule for; else every rank computes them
            whole, from all channels.
        tuning: how the work is done, the same on every rank; it changes speed and memory only.
        verify: hold what was read of the module against the module itself, on rank 0, in all
            modes, on two images: outputs, buffers and gradients. Whether that was possible is
            ``model.hetmp.verification``; rank 0 warns where it was not.

    Raises:
        HetmpError: on every rank at once, with one message: weights that cannot be used, a
            layer that cannot be sliced or computed again, a forward that was not read as it runs,
            a plan for another model or number of ranks, modules or weights that differ between the
            ranks, a meta module without ``init``.
    """
    tuning = tuning or Tuning()
    group = Group(comm)
    with group.together():
        if isinstance(module, SlicedModel):
            raise HetmpError("the model is sliced already: slice the module that it was made of")
        check_kind(module)
        target = _device(module, device)
        graph = read_graph(module, example_input, target)
        original = skeleton_of(module)
        if strict:
            graph.check_strict()
        plan = _plan(graph, weights, schemes, group.size).with_backward(backward or {})
        schedule = schedule_model(graph, plan)
        table = make_table(graph, schedule)
        if RESERVED in dict(graph.skeleton.named_children()):
            raise HetmpError(f"a child module named {RESERVED!r} hides hetmp's own: rename it")
    _agree_on_model(group, graph, plan, schedule, tuning)
    verification = _verified(graph, module, example_input, group) if verify else NOT_ASKED
    model = SlicedModel(graph, plan, schedule, table, group, tuning)
    model.hetmp.verification = verification
    add_layers(model, target)
    _fill(model, module, table, init, group)
    model.training = module.training
    _prepare_hooks(model, module)
    settle(model, Attributes(model, original, mapped(example_input, on_meta), target))
    label(model, table, group)
    model.hetmp.same_draws = SameDraws(model, group)
    guard(module)
    guard_torch()
    return model


def _verified(
    graph: ModelGraph, module: nn.Module, example_input: Any, group: Group
) -> Verification:
    """Verify what was read on rank 0, whose values count. Collective."""
    verification = NOT_ASKED
    with group.together():
        if group.is_root:
            verification = verify_graph(graph, module, graph.inputs.of_example(example_input))
            if verification.reason is not None:
                text = f"{graph.inputs.title} was {verification}"
                warnings.warn(text, UnverifiedWarning, stacklevel=2)
    return Verification.from_text(group.broadcast_text(verification.to_text()))


def _plan(
    graph: ModelGraph,
    weights: Sequence[float] | Plan,
    schemes: str | Mapping[str, str] | None,
    ranks: int,
) -> Plan:
    if not isinstance(weights, Plan):
        return plan_from_weights(graph, checked_weights(weights, ranks), schemes or "filters")
    if schemes is not None:
        raise HetmpError("a plan has the schemes of its layers: give schemes only with weights")
    weights.check_ranks(ranks)
    return weights


def _device(module: nn.Module, device: torch.device | str | None) -> torch.device:
    if device is not None:
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise HetmpError(f"unknown device {device!r}: {error}") from error
    devices = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    devices.discard(torch.device("meta"))
    if len(devices) > 1:
        raise HetmpError(
            f"the module lies on several devices ({', '.join(sorted(map(str, devices)))}): move it "
            "to one, or give slice_model a device"
        )
    return devices.pop() if devices else torch.device("cpu")


def _agree_on_model(
    group: Group, graph: ModelGraph, plan: Plan, schedule: Schedule, tuning: Tuning
) -> None:
    """Refuse ranks that were given different modules, weights, plans, examples or tunings."""
    skeleton = graph.skeleton
    descriptions: dict[str, Iterable[str]] = {
        "module": [
            repr(skeleton),
            *(f"{n} {p.shape} {p.dtype} {p.requires_grad}" for n, p in skeleton.named_parameters()),
            *(f"{name} {b.shape} {b.dtype}" for name, b in skeleton.named_buffers()),
            *(f"{name} {layer.training}" for name, layer in skeleton.named_modules()),
            f"hooks on {graph.hooked}",
        ],
        "plan or weights": [plan.model_dump_json()],
        "example_input": [
            *graph.inputs.names,
            *(f"{step.name} {_description(step)}" for step in schedule.steps),
        ],
        "tuning": [str(tuning)],
    }
    marks = np.array([_mark(lines) for lines in descriptions.values()])
    gathered = group.allgather(marks)
    with group.together():
        for what, column in zip(descriptions, gathered.T, strict=True):
            for rank in np.flatnonzero(column != column[0]):
                raise HetmpError(
                    f"rank {rank} has a different {what} from rank 0: give all ranks the same"
                )


def _mark(lines: Iterable[str]) -> int:
    """Return a checksum of lines, read one at a time: together they may not fit in memory."""
    mark = 0
    for line in lines:
        mark = zlib.crc32(f"{line}\n".encode(), mark)
    return mark


def _description(step: ProgramStep) -> str:
    if isinstance(step, CallStep):
        return f"{step.inputs} {step.run.flow}"
    return str(step)


def add_layers(model: SlicedModel, device: torch.device) -> None:
    """Put this rank's share of every layer where the user has it, with uninitialised tensors."""
    runtime = model.hetmp
    graph, schedule = runtime.graph, runtime.schedule
    steps: dict[str, CallStep] = {}
    for mode, program in enumerate(schedule.programs):
        for step in program.steps:
            if not isinstance(step, CallStep):
                continue
            if step.run.layer is None:
                continue
            if step.node.path not in steps:
                steps[step.node.path] = step
            elif not step.run.call.has_tensors:
                # Each of its runs may have another layout.
                runtime.repeated[step_key(mode, step)] = _local(step, runtime, device)
    inside: set[str] = set()
    for path, layer in graph.skeleton.named_modules(remove_duplicate=False):
        if path == "":
            _adopt(model, layer, device, runtime, path)
            continue
        above, _, name = path.rpartition(".")
        if above in inside:
            inside.add(path)
            continue
        if path in graph.aliases:
            local = model.get_submodule(graph.aliases[path])
            inside.add(path)
        elif path in steps:
            local = _local(steps[path], runtime, device)
            if steps[path].node.reason is not None:
                inside.add(path)
        else:
            local = copy.deepcopy(layer) if _is_unused_layer(layer) else block_of(layer)
            _adopt(local, layer, device, runtime, path)
        model.get_submodule(above).add_module(name, local)
    _tie(model, graph)


def _prepare_hooks(model: SlicedModel, module: nn.Module) -> None:
    """Let the parts of *model* have hooks, and take over those of *module*."""
    runtime = model.hetmp
    hooked_parts = runtime.hooked_parts = HookedParts(model, runtime.graph)
    for mode, program in enumerate(runtime.schedule.programs):
        for step in program.steps:
            if isinstance(step, CallStep) and step.run.layer is not None:
                part = model.get_submodule(step.node.path)
                callee = runtime.callee(model, mode, step)
                if callee is not part and isinstance(callee, nn.Module):
                    hooked_parts.share(part, callee)
    hooked_parts.take_over(module, model)


def _tie(model: nn.Module, graph: ModelGraph) -> None:
    """Share the tensors that are one tensor in the user's module."""
    for name, first in graph.aliases.items():
        (above, _, last), (of, _, own) = name.rpartition("."), first.rpartition(".")
        try:
            home, source = model.get_submodule(above), model.get_submodule(of)
        except AttributeError:
            continue  # below a layer that has another form here
        for kind in ("_parameters", "_buffers"):
            if last in getattr(home, kind) and own in getattr(source, kind):
                getattr(home, kind)[last] = getattr(source, kind)[own]


def _local(step: CallStep, runtime: Runtime, device: torch.device) -> nn.Module:
    """Return this rank's share of the layer that a step runs."""
    run = replace(step.run, wire=runtime.tuning.wire)
    local = step.node.rule.local(run, runtime.group, device)
    if step.node.reason is None:
        local.train(step.run.whole_layer.training)
    as_users_class(local)
    describe_share(local, step.run, runtime.group.rank)
    return local


def _is_unused_layer(layer: nn.Module) -> bool:
    """Return whether *layer*, which no program runs, is one of torch's that holds no others."""
    return isinstance(layer, known_layers()) and not any(layer.children())


def _adopt(
    local: nn.Module, layer: nn.Module, device: torch.device, runtime: Runtime, path: str
) -> None:
    """Register uninitialised tensors in *local* for those that *layer* itself owns, at *path*.

    They are whole, but for those that a layer around it computes its weight from.
    """
    names = (*layer._parameters, *layer._buffers)
    states = {name: runtime.table.get(f"{path}.{name}".lstrip(".")) for name in names}
    cuts = {n: e.state for n, e in states.items() if e is not None and isinstance(e.state, Sliced)}
    counts = {name: cut.layout.counts[runtime.group.rank] for name, cut in cuts.items()}
    parameters, buffers = fresh_tensors(layer, cuts, counts, device)
    for name, parameter in parameters.items():
        local.register_parameter(name, parameter)
    for name, buffer in buffers.items():
        local.register_buffer(name, buffer, name not in layer._non_persistent_buffers_set)
    local.training = layer.training


def _fill(
    model: SlicedModel, module: nn.Module, table: Table, init: Init | None, group: Group
) -> None:
    """Give every parameter and buffer rank 0's value, one at a time."""
    whole, local = tensors_of(module), tensors_of(model)
    meta = group.broadcast(np.array([whole[name].is_meta for name in table], dtype=np.int8))
    with group.together():
        if meta.any() and init is None:
            first = list(table)[int(meta.argmax())]
            raise HetmpError(
                f"{first!r} is on the meta device and has no values: give slice_model an init "
                "function, or a module with values on rank 0"
            )
        if init is not None and not meta.any():
            raise HetmpError(
                "init is only for a module on the meta device, this one has values: leave it out"
            )
    seed = int(group.broadcast(torch.randint(2**31, (1,)).numpy() if init else np.zeros(1, int))[0])
    with torch.no_grad():
        for entry, is_meta in zip(table.values(), meta, strict=True):
            if entry.alias_of is not None:
                continue
            if is_meta:
                _init_slice(local[entry.name], entry, model.hetmp.graph.skeleton, init, seed, group)
            else:
                distribute(group, whole[entry.name], local[entry.name], entry.state)


def _init_slice(
    into: Tensor,
    entry: SlicedTensor,
    skeleton: nn.Module,
    init: Init | None,
    seed: int,
    group: Group,
) -> None:
    with group.together():
        if not entry.parameter:
            above, _, name = entry.name.rpartition(".")
            initial = initial_value(skeleton.get_submodule(above), name)
            if initial is None:
                raise HetmpError(
                    f"buffer {entry.name!r} is on the meta device and has no values: make it with "
                    "device='cpu'"
                )
            into.fill_(initial)
            return
        assert init is not None
        # torch's CPU generator uses only 32 bits of its seed: hash both into them.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {entry.name}".encode()))
        value: Any = init(entry.name, entry.shape, generator)
        if not isinstance(value, Tensor) or value.shape != entry.shape:
            returned = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise HetmpError(
                f"init returned {returned} for {entry.name!r}: return a tensor of shape "
                f"{tuple(entry.shape)}"
            )
        into.copy_(share_of(value, entry.state, group.rank))
