"""The interface of a family of operators: ``Rule``."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from hetmp.cluster import Group
from hetmp.core.partition import Layout
from hetmp.core.state import L, OperandState, Sliced, State, States, channels_of, is_batch
from hetmp.ops.call import Call, Flow, Function, OperatorRun
from hetmp.ops.idle import Idle, IdleAxes, idle_function

M = TypeVar("M", bound=nn.Module, default=nn.Module)
"""The class of the layers that a rule is for."""

Cuts = Mapping[str, Sliced[L]]
"""Which axis of which parameter or buffer of a layer is cut, and how; the others are whole."""


@dataclass(frozen=True)
class LayerForm:
    """How the arguments of a function make a layer.

    Attributes:
        arguments: of the function, in order; the first is ``input``.
        tensors: those of them that the layer owns, under these names in the module.
        make: the layer for the tensors and the other arguments, by name.
    """

    arguments: tuple[str, ...]
    tensors: tuple[str, ...]
    make: Callable[..., nn.Module]


class Rule(Generic[M]):
    """One family of operators: its axis rule, the states it takes and gives, its local maths.

    A layer that mixes channels follows a scheme. Every other operation runs unchanged on slices
    where ``flow`` says so, and otherwise on all channels. A new operator is a new rule. Called
    with an ``Axis`` in the place of a layout, ``flow`` finds which axes must be cut alike.
    """

    layers: ClassVar[tuple[type[nn.Module], ...]] = ()
    """The exact classes that the rule covers."""

    functions: ClassVar[tuple[Function, ...]] = ()
    """The functions that the rule covers."""

    methods: ClassVar[tuple[str, ...]] = ()
    """The tensor methods that the rule covers, by name."""

    mixes: ClassVar[bool] = False
    """Whether every output channel depends on every input channel."""

    runs_empty: ClassVar[bool] = True
    """Whether torch runs the operator on an activation of zero channels."""

    keeps_shape: ClassVar[bool] = False
    """Whether a layer's output has its input's shape and dtype, whatever it is."""

    several: ClassVar[bool] = False
    """Whether a layer may be called with more than one argument."""

    views: ClassVar[tuple[str, ...]] = ()
    """Which of these may return memory of an operand, by ``Call.title``: in-place work on the
    result then changes the operand, too."""

    views_of_one: ClassVar[tuple[str, ...]] = ()
    """Which of these may do so where they have one operand, and never where they have more."""

    random: ClassVar[tuple[str, ...]] = ()
    """Which functions and methods of these may draw random numbers, by ``Call.title``."""

    joins: ClassVar[bool] = False
    """Whether the cut axis of the result has a piece for every operand."""

    keeps_dims: ClassVar[bool] = True
    """Whether the layers give as many dimensions as they take."""

    by_image: ClassVar[bool] = False
    """Whether every image of a batch, axis 0, is computed by itself, however the call is set up."""

    shares_images: ClassVar[bool] = False
    """Whether a layer exchanges where images lie on several ranks, so that all its calls must
    be of such values or none."""

    harmless: ClassVar[tuple[str, ...]] = ()
    """The layers' settings that change values alone, never which channels or sizes come of it."""

    initial_buffers: ClassVar[Mapping[str, float]] = {}
    """The values of the layers' buffers before the first batch, by name."""

    forms: ClassVar[Mapping[Function, "LayerForm"]] = {}
    """Functions that amount to a layer where a module calls them with parameters of its own."""

    # --- what an operator asks of its input, before it runs

    def unfit(self, call: Call[M]) -> str | None:
        """Return why the rule does not apply to a call, as it is set up; None if it applies."""
        return None

    def channel_axis(self, layer: M, dims: int) -> int:
        """Return the channel axis of an activation of *dims* dimensions."""
        return 1

    def input_dims(self, layer: M) -> int | None:
        """Return the number of dimensions of a batched input, or None if several will do."""
        return None

    def groups(self, layer: M) -> int:
        """Return the number of groups of channels that the layer does not mix."""
        return 1

    def takes_item(self, call: Call[M]) -> bool:
        """Return whether the call takes one item of a tuple and nothing else."""
        return False

    def input_channels(self, layer: M) -> int | None:
        """Return the number of channels that the layer takes, or None for any number."""
        return None

    def output_channels(self, layer: M) -> int:
        """Return the number of channels that a mixing layer gives, which its plan cuts."""
        raise NotImplementedError

    def tensors(self, layer: M) -> tuple[str, ...]:
        """Return the names of the parameters and buffers that the layer itself computes with."""
        return (*layer._parameters, *layer._buffers)

    # --- how states pass through it

    def flow(self, call: Call[M], states: States[L]) -> Flow[L] | None:
        """Return the states taken and given, where an operand is sliced; None to take all full."""
        (name,) = states
        source = states[name]
        result: State[L] | None = None
        if self.by_image and isinstance(source, Sliced) and source.axis == 0 and is_batch(source):
            result = source
        elif isinstance(source, Sliced):
            result = self.gives(call, source)
        return None if result is None else Flow({name: source}, result)

    def gives(self, call: Call[M], source: Sliced[L]) -> State[L] | None:
        """Return the result's state for one sliced operand; None if it needs all channels."""
        return source

    def channels_last(self, layer: M, shape: torch.Size) -> bool:
        """Return whether an input of *shape* runs faster as channels_last."""
        return False

    # --- what a rank holds and runs of it

    def cuts(self, run: OperatorRun[L, M]) -> Cuts[L]:
        """Return how the layer's parameters and buffers are cut."""
        return {}

    def resize(self, layer: M, run: OperatorRun[Layout, M], count: int) -> None:
        """Set the size attributes of *layer* itself to *count* channels on this rank.

        *layer* is this rank's copy; *run* has the user's layer, ``run.layer``, and its scheme.
        """

    def local(self, run: OperatorRun[Layout, M], group: Group, device: torch.device) -> nn.Module:
        """Return this rank's share of a layer: uninitialised parameters of its share's sizes.

        The call's layer is on the meta device. A rank without channels has it run as an ``Idle``.
        Not collective.

        Args:
            run: the call of the layer, and how it runs on slices.
            group: the ranks that share the layer.
            device: where this rank computes.
        """
        cuts = self.cuts(run)
        counts = {name: cut.layout.counts[group.rank] for name, cut in cuts.items()}
        share = run.source if run.scheme is None else run.scheme.share(run)
        local = sized(run.whole_layer, cuts, counts, device)
        if not isinstance(share, Sliced) or is_batch(share):
            return local
        count = share.layout.counts[group.rank]
        if count == 0 and (self.mixes or not self.runs_empty):
            self.idle(local, run)
            return local
        self.resize(local, run, count)
        return local

    def idle(self, layer: M, run: OperatorRun[Layout, M]) -> None:
        """Let *layer*, which has no channels on this rank, run as an ``Idle``."""
        Idle(layer, self.stand_in(run), **self.idle_axes(run))

    def stand_in(self, run: OperatorRun[Layout, M]) -> M:
        """Return the layer with one channel, on the meta device, to find output shapes."""
        cuts = self.cuts(run)
        stand_in = sized(run.whole_layer, cuts, dict.fromkeys(cuts, 1), torch.device("meta"))
        self.resize(stand_in, run, 1)
        return stand_in

    def idle_axes(self, run: OperatorRun[Layout, M]) -> IdleAxes:
        """Return the axes of ``Idle`` for a rank without channels."""
        source, target = run.source, run.target
        return {
            "narrows": source.axis if isinstance(source, Sliced) else None,
            "empties": target.axis if isinstance(target, Sliced) else None,
        }

    def function(self, run: OperatorRun[Layout, M], group: Group) -> Function:
        """Return what this rank calls for a function or method, on its shares of operands."""
        source = run.source
        layout = channels_of(source)
        if layout is not None and layout.counts[group.rank] == 0 and not self.runs_empty:
            return idle_function(run, self.idle_axes(run).get("width", 1))
        return lambda *args, **kwargs: run.call.invoke(args, kwargs)


def sized(layer: M, cuts: Cuts, counts: Mapping[str, int], device: torch.device) -> M:
    """Copy *layer* to *device* with uninitialised tensors, cut ones *counts* long.

    *cuts* says which axis of which tensor is cut; *counts* has this rank's length of it, by name.
    """
    local = copy.deepcopy(layer)
    parameters, buffers = fresh_tensors(layer, cuts, counts, device)
    local._parameters.update(parameters)
    local._buffers.update(buffers)
    return local


def fresh_tensors(
    layer: nn.Module, cuts: Cuts, counts: Mapping[str, int], device: torch.device
) -> tuple[dict[str, nn.Parameter | None], dict[str, Tensor | None]]:
    """Return uninitialised parameters and buffers for *layer*'s, cut ones *counts* long.

    They lie on *device*. *cuts* says which axis of which tensor is cut; *counts* has this rank's
    length of it, by name.
    """

    def empty(name: str, tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        if name in cuts:
            shape[cuts[name].axis] = counts[name]
        return torch.empty(shape, dtype=tensor.dtype, device=device)

    parameters = {
        name: parameter
        if parameter is None
        else nn.Parameter(empty(name, parameter), requires_grad=parameter.requires_grad)
        for name, parameter in layer._parameters.items()
    }
    buffers = {
        name: buffer if buffer is None else empty(name, buffer)
        for name, buffer in layer._buffers.items()
    }
    return parameters, buffers


def cut_along(
    layer: nn.Module | None, names: Mapping[str, int], state: "OperandState[L]"
) -> Cuts[L]:
    """Cut each named tensor along its axis as *state* is cut; nothing if that has all channels.

    *names* are the tensors' axes, by name; those that *layer* does not have are left out.
    """
    if not isinstance(state, Sliced) or is_batch(state):
        return {}
    return {
        name: Sliced(state.layout, axis)
        for name, axis in names.items()
        if getattr(layer, name, None) is not None
    }


def whole_of(share: Tensor, state: object) -> Tensor:
    """Return a tensor without data, of the shape of the whole tensor that *share* is part of."""
    shape = list(share.shape)
    if isinstance(state, Sliced):
        shape[state.axis] = state.layout.total
    return torch.empty(shape, device="meta", dtype=share.dtype)
