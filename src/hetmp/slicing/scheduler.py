"""Make a schedule of a graph and a plan: states, exchanges and parameter cuts. Pure, no MPI.

Exchanges come as late as possible: channel-wise work runs on slices, and a value is gathered
only where an operation needs all its channels, once, so that pooling makes messages small.
"""

from typing import Any, Generic, Protocol

from typing_extensions import TypeVar

from hetmp.core.batch_layout import BatchLayout
from hetmp.core.cuttable import Cuttable
from hetmp.core.errors import HetmpError
from hetmp.core.partition import Layout, checked_weights
from hetmp.core.state import FULL, PARTIAL, L, OperandState, Sliced, State, States, is_batch
from hetmp.core.suggestions import nearest
from hetmp.ops import SCHEMES, Flow, Mixing, OperatorRun, Ref, Scheme, SchemeName, Value, filled
from hetmp.slicing.batch_axis import (
    batch_axis,
    images_of,
    no_batch_axis,
    not_of_images,
    spans,
)
from hetmp.slicing.graph import PLAIN, ModelGraph, Node, Scope, Trace
from hetmp.slicing.plan import LayerPlan, Plan
from hetmp.slicing.schedule import BiasStep, CallStep, ExchangeStep, Program, ProgramStep, Schedule
from hetmp.slicing.segments import check_recomputed

Cut = TypeVar("Cut", bound=Cuttable, covariant=True)


class SchemeChoice(Protocol[Cut]):
    """The choice of scheme and layout for each mixing layer."""

    def scheme(self, node: Node) -> SchemeName:
        """Return the scheme that a layer follows."""

    def layout(self, node: Node) -> Cut:
        """Return the layout of a layer's output channels."""

    def batch_weights(self, node: Node) -> tuple[float, ...]:
        """Return the ranks' shares of a batch, for a layer of scheme ``batch``."""


def schedule_model(graph: ModelGraph, plan: Plan) -> Schedule:
    """Make the schedule of a graph under a plan. Not collective.

    Raises:
        HetmpError: the plan is for another model, or asks for what cannot be done.
    """
    _check_plan(graph, plan)
    scheduler = Scheduler(graph, PlannedChoice(plan))
    programs = {id(trace): scheduler.program(trace) for trace in graph.traces}
    schedule = Schedule(plan.ranks, {mode: programs[id(t)] for mode, t in graph.modes.items()})
    check_recomputed(graph, schedule, plan)
    return schedule


class PlannedChoice:
    """The choices of a plan."""

    def __init__(self, plan: Plan) -> None:
        self._layers: dict[str, LayerPlan] = {layer.name: layer for layer in plan.layers}
        self._layouts: dict[str, Layout] = {}

    def scheme(self, node: Node) -> SchemeName:
        """Return the scheme that a layer follows."""
        return self._layers[node.path].scheme

    def layout(self, node: Node) -> Layout:
        """Return the layout of a layer's output channels."""
        if node.path not in self._layouts:
            self._layouts[node.path] = self._layers[node.path].layout
        return self._layouts[node.path]

    def batch_weights(self, node: Node) -> tuple[float, ...]:
        """Return the ranks' shares of a batch, for a layer of scheme ``batch``."""
        return self._layers[node.path].weights


class Scheduler(Generic[L]):
    """Passes states through the traces of one model, operation by operation."""

    def __init__(self, graph: ModelGraph, choice: SchemeChoice[L]) -> None:
        self.graph, self.choice = graph, choice
        # A layer's first run says how its parameters are cut; later runs take what fits them.
        self.first: dict[str, OperatorRun[L]] = {}

    def program(self, trace: Trace) -> Program:
        """Make the program of one mode."""
        self.begin(trace)
        for node in trace.nodes:
            self.visit(node)
        return self.end()

    def begin(self, trace: Trace) -> None:
        """Start on a trace, of which nothing has run."""
        self.trace = trace
        self.images = images_of(trace)
        self.states: dict[str, OperandState[L]] = dict.fromkeys(
            (*trace.entries, *trace.attributes), FULL
        )
        self.known: dict[str, Value] = dict(trace.values)
        self.exchanged: dict[tuple[str, OperandState[L]], str] = {}
        self.current: dict[str, str] = {name: name for name in self.states}
        self.steps: list[ProgramStep] = []
        self.scope = PLAIN

    def visit(self, node: Node) -> None:
        """Add the steps of the trace's next operation."""
        self.scope = node.scope
        if isinstance(node.rule, Mixing) and node.reason is None:
            self.mix(node, node.rule)
        else:
            self.pass_through(node)

    def end(self) -> Program:
        """Return the program, after all operations were visited."""
        trace, self.scope = self.trace, PLAIN
        result = filled(trace.result, lambda name: Ref(self.in_state(self.current[name], FULL)))
        return Program(trace.entries, trace.attributes, tuple(self.steps), result)

    def mix(self, node: Node, rule: Mixing) -> None:
        """Add the steps of a layer that mixes channels, under its scheme."""
        layer, scheme = node.call.whole_layer, SCHEMES[self.choice.scheme(node)]
        (operand,) = node.call.operands
        first = self.first.get(node.path)
        axis = rule.channel_axis(layer, node.call.operand.dims)
        if scheme.cuts_batch:
            self.mix_images(node, operand, axis, scheme)
            return
        output = Sliced(self.choice.layout(node), axis)
        if first is None:
            source = tensors_state(self.states[self.current[operand]])
        else:  # a layer that runs again takes what its parameters are cut for
            source = _at_axis(first.source, axis)
        input_state = scheme.takes(rule, layer, source, output)
        if input_state is None:
            raise HetmpError(scheme.refusal(node.place, rule, layer, output))
        gives = scheme.gives(output)
        if gives != PARTIAL:
            self.run(node, {operand: input_state}, gives, scheme)
            return
        if first is not None:
            target = _at_axis(first.owned, axis)
        else:
            target = FULL if self.wanted_full(node) else output
        self.run(node, {operand: input_state}, gives, scheme, owned=target)
        reduced = self.in_state(node.name, target)
        self.current[node.name] = self.biased(node, rule, reduced, target, axis)

    def mix_images(self, node: Node, operand: str, channel_axis: int, scheme: Scheme) -> None:
        """Add the steps of a layer that computes all channels of some images of *operand*."""
        layout: Any = BatchLayout(checked_weights(self.choice.batch_weights(node)))
        source = self.states[self.current[operand]]
        place = batch_axis(node.call.values[operand], self.images, channel_axis)
        if place is None:
            raise HetmpError(no_batch_axis(node))
        axis, block = place
        state = Sliced(layout.scaled(block), axis)
        if isinstance(source, Sliced) and is_batch(source) and source.layout == state.layout:
            state = source
        self.run(node, {operand: state}, state, scheme)

    def wanted_full(self, node: Node) -> bool:
        """Return whether every consumer of this value needs all its channels."""
        if node.name in self.trace.returned:
            return True
        consumers = self.trace.consumers(node.name)
        return all(map(self.takes_all, consumers))

    def takes_all(self, node: Node) -> bool:
        """Return whether a layer computes its share of the output from all channels."""
        if not isinstance(node.rule, Mixing) or node.call.layer is None:
            return False
        scheme = SCHEMES[self.choice.scheme(node)]
        by_channels = scheme.cuts_inputs or scheme.cuts_batch
        return not by_channels and node.rule.groups(node.call.layer) == 1

    def pass_through(self, node: Node) -> None:
        """Add the steps of any other operation, which runs on slices where it can."""
        call = node.call
        states = {name: self.states[self.current[name]] for name in call.operands}
        cut = [s for state in states.values() for s in _parts(state) if isinstance(s, Sliced)]
        by_channels = [part for part in cut if not is_batch(part)]
        if by_channels and len(by_channels) < len(cut):
            # The channels lead: slices of the batch are exchanged for slices of these.
            states = {n: FULL if any(map(is_batch, _parts(s))) else s for n, s in states.items()}
        tied = call.has_tensors and node.reason is None and self.graph.is_tied(node)
        flow = node.rule.flow(call, states) if cut and not (tied and by_channels) else None
        if flow is not None and not self.keeps_images(node, flow):
            flow = None
        if flow is not None and isinstance(flow.gives, tuple) and not self.taken_apart(node):
            flow = None
        if flow is None:
            flow = Flow(dict.fromkeys(states, FULL), FULL)
        if call.layer is not None and node.path in self.first:
            flow = self.again(node, flow)
        self.run(node, flow.wants, flow.gives, None)

    def keeps_images(self, node: Node, flow: Flow[L]) -> bool:
        """Return whether every axis that *flow* has as the batch's is as long as the batch."""
        known = [(node.call.values[name], state) for name, state in flow.wants.items()]
        return all(
            spans(value, part, self.images)
            for value, state in [*known, (node.call.result, flow.gives)]
            for value, part in _each(value, state)
        )

    def again(self, node: Node, flow: Flow[L]) -> Flow[L]:
        """Return how a layer runs once more: by *flow*, if its parameters are cut for that."""
        first, call = self.first[node.path], node.call
        cuts = node.rule.cuts(first)
        flows = [flow]
        of_images = node.rule.shares_images and is_batch(first.source)
        if of_images:
            flow = Flow(dict.fromkeys(call.operands, first.source), first.source)
            if self.keeps_images(node, flow):
                flows.append(flow)
        elif isinstance(first.source, Sliced) and not is_batch(first.source):
            (name,) = call.operands
            # Layers count their axes from the left or from the right.
            shift = call.operand.dims - first.call.operand.dims
            axes = (first.source.axis, first.source.axis + shift)
            states = [Sliced(first.source.layout, axis) for axis in axes]
            flows += [other for s in states if (other := node.rule.flow(call, {name: s}))]
        runs = (OperatorRun(call, f, None, FULL) for f in flows)
        fits = (
            run.flow
            for run in runs
            if node.rule.cuts(run) == cuts
            and (not node.rule.shares_images or is_batch(run.source) == of_images)
        )
        fitting = next(fits, None)
        if fitting is None and of_images:
            raise HetmpError(not_of_images(node))
        return fitting or Flow(dict.fromkeys(flow.wants, FULL), FULL)

    def taken_apart(self, node: Node) -> bool:
        """Return whether a tuple is used only item by item."""
        consumers = self.trace.consumers(node.name)
        return node.name not in self.trace.returned and all(
            c.rule.takes_item(c.call) for c in consumers
        )

    def run(
        self,
        node: Node,
        wants: States[L],
        gives: OperandState[L],
        scheme: Scheme | None,
        owned: State[L] | None = None,
    ) -> None:
        """Add the step of an operation, after the exchanges that it needs.

        Args:
            node: the operation.
            wants: the states in which it takes its operands, by name; the others as they are.
            gives: the state of its result, or one for each item of a tuple.
            scheme: of a layer that mixes channels; else None.
            owned: the state that decides where the bias lies; *gives* if None.
        """
        inputs = {
            name: self.in_state(self.current[name], wants[name]) if name in wants
            else self.current[name]
            for name in node.call.values
        }  # fmt: skip
        run = OperatorRun(node.call, Flow(wants, gives), scheme, gives if owned is None else owned)
        self.steps.append(
            CallStep(node.name, tuple(inputs.values()), node.scope, node, run, inputs)
        )
        self.states[node.name] = gives
        self.current[node.name] = node.name
        if node.call.has_tensors:
            self.first.setdefault(node.path, run)

    def biased(self, node: Node, rule: Mixing, value: str, state: State[L], axis: int) -> str:
        """Add the bias of an ``inputs`` layer; return the name of the result.

        Args:
            node: the layer's operation.
            rule: of the layer.
            value: the name of its reduced output, to which the bias is added.
            state: of that output.
            axis: of its channels.
        """
        if not rule.has_bias(node.call.whole_layer):
            return value
        name = f"{node.name} biased"
        parameter = f"{node.path}.bias"
        self.steps.append(BiasStep(name, (value,), node.scope, state, state, parameter, axis))
        self.states[name], self.known[name] = state, self.known[node.name]
        return name

    def in_state(self, value: str, target: OperandState[L]) -> str:
        """Return the name of the value in the wanted state; add an exchange once, if needed."""
        source = self.states[value]
        if source == target:
            return value
        if isinstance(source, Sliced) and isinstance(target, Sliced) and source.axis != target.axis:
            turns = is_batch(source) != is_batch(target) and (value, FULL) not in self.exchanged
            if not turns:
                return self.in_state(self.in_state(value, FULL), target)
        if (value, target) not in self.exchanged:
            name = f"{value} exchanged {len(self.exchanged)}"
            before, after = tensors_state(source), tensors_state(target)
            scope = Scope(checkpoint=self.scope.checkpoint)
            self.steps.append(ExchangeStep(name, (value,), scope, before, after, self.known[value]))
            self.states[name], self.known[name] = target, self.known[value]
            self.exchanged[value, target] = name
        return self.exchanged[value, target]


def tensors_state(state: OperandState[L]) -> State[L]:
    """Return the state of a value that is known to be one tensor."""
    assert not isinstance(state, tuple)
    return state


def _at_axis(state: OperandState[L], axis: int) -> State[L]:
    """Return a sliced state with *axis* in the place of its own; other states unchanged."""
    return Sliced(state.layout, axis) if isinstance(state, Sliced) else tensors_state(state)


def _parts(state: OperandState[L]) -> tuple[State[L], ...]:
    return state if isinstance(state, tuple) else (state,)


def _each(value: Value, state: OperandState[L]) -> list[tuple[Value, State[L]]]:
    """Return the tensors of a value with their states."""
    if isinstance(state, tuple):
        return list(zip(value.items, state, strict=True))
    return [(value, state)]


def _check_plan(graph: ModelGraph, plan: Plan) -> None:
    planned = {layer.name: layer for layer in plan.layers}
    if len(planned) != len(plan.layers):
        raise HetmpError("the plan names a layer more than once")
    for node in graph.mixing():
        layer = planned.pop(node.path, None)
        channels = node.rule.output_channels(node.call.whole_layer)
        if layer is None:
            meant = nearest(node.path, planned, cutoff=0.8)
            hint = f", but {meant!r}" if meant else ""
            raise HetmpError(f"the plan is for another model: it has no layer {node.place}{hint}")
        if layer.channels != channels:
            raise HetmpError(
                f"the plan is for another model: layer {node.place} has {layer.channels} channels "
                f"in the plan and {channels} in the model"
            )
        assert isinstance(node.rule, Mixing)
        allowed = (
            ("batch", "whole") if graph.is_tied(node) else node.rule.schemes(node.call.whole_layer)
        )
        if layer.scheme not in allowed:
            why = (
                "shares a parameter with others"
                if graph.is_tied(node)
                else node.rule.why_not(node.call.layer)
            )
            raise HetmpError(
                f"layer {node.place} {why}: it cannot follow scheme {layer.scheme!r}, only "
                f"{' or '.join(allowed)}"
            )
    if planned:
        raise HetmpError(
            f"the plan is for another model: the model has no layer {next(iter(planned))!r}"
        )
