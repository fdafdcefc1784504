"""Graph and plan -> states, exchanges and parameter cuts: what runs, in order. Pure, no MPI.

Exchanges come as late as possible: channel-wise layers run on slices, and a value is
gathered only where a layer needs all its channels, so that pooling makes messages small.
"""

from dataclasses import dataclass

from hetmp.errors import HetmpError
from hetmp.graph import ModelGraph, Node
from hetmp.ops import Cuts, Scheme
from hetmp.partition import Layout, Partition, apportion
from hetmp.plan import LayerPlan, Plan
from hetmp.state import FULL, PARTIAL, Sliced, State


@dataclass(frozen=True)
class Step:
    """One thing that happens to a value; ``name`` is also the name of the value it makes.

    Attributes:
        source, name: the value taken and the value made.
        before, after: their states.
    """

    name: str
    source: str
    before: State
    after: State


@dataclass(frozen=True)
class LayerStep(Step):
    """A layer runs.

    Attributes:
        scheme: what a mixing layer does with the states; None for channel-wise work.
        owned: the state that decides where the bias of an ``inputs`` layer lies.
    """

    node: Node
    scheme: Scheme | None
    owned: State

    @property
    def cuts(self) -> Cuts:
        """Where the layer's parameters and buffers are cut."""
        return self.node.rule.cuts(self.node.layer, self.scheme, self.before, self.owned)


@dataclass(frozen=True)
class ExchangeStep(Step):
    """An exchange between layers."""


@dataclass(frozen=True)
class BiasStep(Step):
    """The bias of an ``inputs`` layer is added, once, after its reduction.

    Attributes:
        parameter: the bias's name in the user's ``state_dict``.
        axis: the activation's channel axis.
    """

    parameter: str
    axis: int


@dataclass(frozen=True)
class Schedule:
    """What runs, in order.

    Attributes:
        entry, result: the names of the model's input and output values; the output is full.
    """

    ranks: int
    entry: str
    steps: tuple[Step, ...]
    result: str


def make_schedule(graph: ModelGraph, plan: Plan) -> Schedule:
    """What a sliced model runs.

    Raises:
        HetmpError: the plan is for another model, or asks for what cannot be done.
    """
    return _Scheduler(graph, plan).run()


class _Scheduler:
    def __init__(self, graph: ModelGraph, plan: Plan) -> None:
        self.graph, self.plan = graph, plan
        self.states: dict[str, State] = {graph.entry: FULL}
        self.exchanged: dict[tuple[str, State], str] = {}
        self.values: dict[str, str] = {graph.entry: graph.entry}
        self.steps: list[Step] = []
        _check_plan(graph, plan)

    def run(self) -> Schedule:
        for node in self.graph.nodes:
            if node.rule.mixes:
                self.mix(node, self.plan.layer(node.path))
            else:
                self.pass_through(node)
        result = self.in_state(self.values[self.graph.result], FULL)
        return Schedule(self.plan.ranks, self.graph.entry, tuple(self.steps), result)

    def mix(self, node: Node, layer: LayerPlan) -> None:
        axis = node.rule.channel_axis(node.layer, len(node.given))
        sliced = Sliced(Layout.of(layer.partition), axis)
        source = self.values[node.source]
        if layer.scheme == "filters":
            self.layer(node, self.in_state(source, FULL), sliced, layer.scheme)
        elif layer.scheme == "whole":
            self.layer(node, self.in_state(source, FULL), FULL, layer.scheme)
        else:
            taken = self.states[source]
            if not isinstance(taken, Sliced) or taken.axis != axis:
                source = self.in_state(source, FULL)
                taken = Sliced(Layout.of(self.input_partition(node)), axis)
            target = FULL if self.wanted_full(node) else sliced
            summand = self.layer(
                node, self.in_state(source, taken), PARTIAL, layer.scheme, owned=target
            )
            reduced = self.in_state(summand, target)
            self.values[node.name] = self.biased(node, reduced, axis)

    def input_partition(self, node: Node) -> Partition:
        """How an ``inputs`` layer cuts a full input: with the ranks' shares of its output."""
        channels = node.rule.input_channels(node.layer)
        counts = self.plan.layer(node.path).counts
        if channels is None or not any(counts):
            raise HetmpError(f"layer {node.place} cannot follow scheme 'inputs'")
        return apportion(channels, counts)

    def wanted_full(self, node: Node) -> bool:
        """Whether all that takes this value needs all its channels."""
        consumers = self.graph.consumers(node.name)
        return all(c.rule.mixes and self.plan.layer(c.path).scheme != "inputs" for c in consumers)

    def pass_through(self, node: Node) -> None:
        source = self.values[node.source]
        state = self.states[source]
        given: State | None = state
        if isinstance(state, Sliced):
            given = node.rule.gives(node.layer, state, node.taken, node.given)
        if given is None:
            source, given = self.in_state(source, FULL), FULL
        self.layer(node, source, given, None)

    def layer(
        self,
        node: Node,
        source: str,
        after: State,
        scheme: Scheme | None,
        owned: State | None = None,
    ) -> str:
        before = self.states[source]
        owned = after if owned is None else owned
        self.steps.append(LayerStep(node.name, source, before, after, node, scheme, owned))
        self.states[node.name] = after
        self.values[node.name] = node.name
        return node.name

    def biased(self, node: Node, value: str, axis: int) -> str:
        if getattr(node.layer, "bias", None) is None:
            return value
        name, state = f"{node.name} biased", self.states[value]
        self.steps.append(BiasStep(name, value, state, state, f"{node.path}.bias", axis))
        self.states[name] = state
        return name

    def in_state(self, value: str, target: State) -> str:
        """The value in the wanted state: itself, or what an exchange makes of it, made once."""
        source = self.states[value]
        if source == target:
            return value
        if (value, target) not in self.exchanged:
            name = f"{value} exchanged {len(self.exchanged)}"
            self.steps.append(ExchangeStep(name, value, source, target))
            self.states[name] = target
            self.exchanged[value, target] = name
        return self.exchanged[value, target]


def _check_plan(graph: ModelGraph, plan: Plan) -> None:
    planned = {layer.name: layer for layer in plan.layers}
    if len(planned) != len(plan.layers):
        raise HetmpError("the plan names a layer more than once")
    for node in graph.mixing():
        layer = planned.pop(node.path, None)
        channels = node.rule.output_channels(node.layer)
        if layer is None:
            raise HetmpError(f"the plan is for another model: it has no layer {node.place}")
        if layer.channels != channels:
            raise HetmpError(
                f"the plan is for another model: it gives layer {node.place} {layer.channels} "
                f"channels, the model {channels}"
            )
    if planned:
        raise HetmpError(
            f"the plan is for another model: the model has no layer {next(iter(planned))!r}"
        )
