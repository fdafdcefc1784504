"""Shapes of all values, by running a graph on the meta device with inputs of unlike sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument, Target

from hetmp.core.errors import HetmpError
from hetmp.ops import Value, mapped, rule_for
from hetmp.slicing.graph.confirmation import confirm, is_size
from hetmp.slicing.graph.items import COUNTED
from hetmp.slicing.graph.meta_run import modes_kept, on_meta, run_layer, run_method, without_data

SIDES = (224, 256, 32, 28, 64, 96, 128, 299, 48, 40, 16, 8, 9, 12, 10, 7, 6, 5, 4, 20, 24)
"""The image sides that are tried where no example is given; the first two that fit are used."""


@dataclass(frozen=True)
class Probed:
    """What probing tells.

    Attributes:
        values: the facts known about every value, by name.
        takes_apart: whether the module takes its batch apart, into a tensor per image or the like,
            so that it can be read for one number of images only.
    """

    values: Mapping[str, Value]
    takes_apart: bool


def probe(skeleton: nn.Module, graph: fx.Graph, examples: Mapping[str, Tensor]) -> Probed:
    """Find the shapes of all values from an example, whose batch size may vary.

    Raises:
        HetmpError: the example does not fit the model.
    """
    shapes = {name: tuple(example.shape) for name, example in examples.items()}
    try:
        first = _run(skeleton, graph, _empty(examples, shapes), tolerant=False)
    except Exception as error:
        raise misfit(examples, error) from error
    runs, takes_apart = [first], False
    batch = next((shape[0] for shape in shapes.values() if shape), 1)
    # All inputs may have a batch axis, or only those that are as long as the first one.
    for lengths in ({shape[0] for shape in shapes.values() if shape}, {batch}):
        larger = {
            name: (shape[0] + 1, *shape[1:]) if shape and shape[0] in lengths else shape
            for name, shape in shapes.items()
        }
        if len(runs) > 1:
            break
        run = _attempt(skeleton, graph, _empty(examples, larger))
        if run is not None and _alike(run, first):
            runs.append(run)
        takes_apart = run is not None and len(runs) == 1 and _is_counted(graph, run, first)
    values = {name: _value([run[name] for run in runs], max(1, batch)) for name in first}
    return Probed(values, takes_apart)


def misfit(examples: Mapping[str, Tensor], error: Exception) -> HetmpError:
    """Return the exception for examples on which a module failed with *error*."""
    shown = ", ".join(str(tuple(example.shape)) for example in examples.values())
    return HetmpError(f"an input of shape {shown} does not fit the model: {_short(error)}")


def probe_unseen(
    skeleton: nn.Module,
    graph: fx.Graph,
    name: str,
    dims: int,
    channels: int | None,
    dtype: torch.dtype,
) -> Probed:
    """Find the shapes of all values of a model with one input, without an example.

    Args:
        name: of the input.
        dims: how many dimensions it is taken to have.
        channels: how many channels, None if it is not known.

    Raises:
        HetmpError: no size of image that is tried fits the model.
    """
    runs: list[dict[str, object]] = []
    errors: list[Exception] = []
    takes_apart = False

    def fits(side: int, channels: int) -> bool:
        nonlocal takes_apart
        shape = (2 + len(runs), channels, *[side] * (dims - 2))[:dims]
        inputs = {name: torch.empty(shape, dtype=dtype, device="meta")}
        try:
            run = _run(skeleton, graph, inputs, tolerant=True)
        except Exception as error:
            errors.append(error)
            return False
        if runs and not _alike(run, runs[0]):
            takes_apart = side == first and _is_counted(graph, run, runs[0])
            return False
        runs.append(run)
        return True

    first = 0
    for side in SIDES:
        # Where the layers do not fix the channels, the probes have different ones if they can.
        if any(fits(side, count) for count in ([channels] if channels else [3 + len(runs), 3])):
            first = first or side
        if len(runs) == 2:
            break
    if len(runs) == 1:  # the module fixes its image's size, but not the batch's
        fits(first, channels or 3)
    if not runs:
        raise HetmpError(
            f"the size of {type(skeleton).__name__}'s input cannot be guessed ({_short(errors[0])}"
            "): give slice_model an example_input"
        )
    values = {key: _value([run[key] for run in runs], 2) for key in runs[0]}
    return Probed(values, takes_apart and len(runs) == 1)


def _empty(
    examples: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    return {
        name: torch.empty(shapes[name], dtype=example.dtype, device="meta")
        for name, example in examples.items()
    }


def _attempt(
    skeleton: nn.Module, graph: fx.Graph, inputs: Mapping[str, Tensor]
) -> dict[str, object] | None:
    try:
        return _run(skeleton, graph, inputs, tolerant=False)
    except Exception:
        return None  # the module fixes its batch size


def _run(
    skeleton: nn.Module, graph: fx.Graph, inputs: Mapping[str, Tensor], *, tolerant: bool
) -> dict[str, object]:
    """Run a graph and return every value, by the name of its node."""
    with modes_kept(skeleton), without_data():
        skeleton.eval()  # batch norm would refuse one value per channel
        interpreter = _Shapes(skeleton, graph, tolerant)
        entries = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
        interpreter.run(*(inputs[entry] for entry in entries))
    return interpreter.values


class _Shapes(fx.Interpreter):
    """Records every value; *tolerant* of layers behind an image size that is only guessed."""

    def __init__(self, module: nn.Module, graph: fx.Graph, tolerant: bool) -> None:
        super().__init__(module, garbage_collect_values=False, graph=graph)
        self.tolerant = tolerant
        self.values: dict[str, object] = {}
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> object:
        # The meta device has no device's name and no mode to confirm.
        skipped = n.target is confirm and not is_size(n.args[0])
        value = None if skipped else super().run_node(n)
        self.values[n.name] = _shapes_of(value)
        return value

    def get_attr(
        self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]
    ) -> object:
        return on_meta(super().get_attr(target, args, kwargs))

    def call_function(
        self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]
    ) -> object:
        # torch.fx's own containers cannot be changed, which a function may do.
        args, kwargs = mapped((args, kwargs), lambda item: item)
        return super().call_function(target, args, kwargs)

    def call_method(
        self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]
    ) -> object:
        assert isinstance(target, str)
        return run_method(target, args, kwargs)

    def call_module(
        self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]
    ) -> object:
        assert isinstance(target, str)
        layer = self.fetch_attr(target)
        if self.tolerant and rule_for(layer) is not None and args and isinstance(args[0], Tensor):
            args = (_demanded(layer, args[0]), *args[1:])
        return run_layer(layer, args, kwargs)


def _demanded(layer: nn.Module, x: Tensor) -> Tensor:
    """Give *x* the channels that the layer demands: a flattened image's size is only guessed."""
    rule = rule_for(layer)
    wanted = rule.input_channels(layer) if rule is not None else None
    axis = rule.channel_axis(layer, x.dim()) if rule is not None else 0
    if wanted is None or axis >= x.dim() or x.shape[axis] == wanted:
        return x
    shape = list(x.shape)
    shape[axis] = wanted
    return x.new_empty(shape)


def _shapes_of(value: object) -> object:
    """Return a tensor as (shape, bytes), a tuple item by item, anything else as None."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.numel() * value.element_size())
    if isinstance(value, tuple | list) and any(isinstance(item, Tensor) for item in value):
        return [_shapes_of(item) for item in value]
    return None


def _alike(run: dict[str, object], other: dict[str, object]) -> bool:
    return run.keys() == other.keys() and all(_same_kind(run[key], other[key]) for key in run)


def _is_counted(graph: fx.Graph, run: dict[str, object], other: dict[str, object]) -> bool:
    """Return whether the module depends on a number of items that differs between the runs."""
    counted = (node.name for node in graph.nodes if node.meta.get(COUNTED, False))
    return any(not _same_kind(run[name], other[name]) for name in counted if name in run)


def _same_kind(a: object, b: object) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a[0]) == len(b[0])
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same_kind, a, b))
    return a is None and b is None


def _value(seen: Sequence[Any], batch: int) -> Value:
    first = seen[0]
    if isinstance(first, tuple):
        return Value(sizes=tuple(shape for shape, _ in seen), image_bytes=first[1] // batch)
    if isinstance(first, list):
        return Value(items=tuple(_value(items, batch) for items in zip(*seen, strict=True)))
    return Value()


def _short(error: Exception) -> str:
    """Return the error's own text, without torch.fx's note on where it happened."""
    return str(error).split("\n\nWhile executing")[0].strip()
