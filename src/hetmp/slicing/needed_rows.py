"""Which images of its inputs a rank needs, and whether those are what it is called with."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral

from torch import Tensor

from hetmp.core.batch_layout import BatchLayout
from hetmp.core.errors import HetmpError
from hetmp.core.state import Sliced, batch_of
from hetmp.ops import Value
from hetmp.slicing.batch_axis import batch_axis, images_of
from hetmp.slicing.graph import Trace
from hetmp.slicing.rows import Input, Rows, whole_shape
from hetmp.slicing.schedule import CallStep, ExchangeStep, HookedStep, Program, ProgramStep


@dataclass(frozen=True)
class Need:
    """The images of a pass's inputs that the ranks need.

    Attributes:
        layout: how the ranks share them; None where every rank needs all.
        why_all: what needs all of them, for the reader; empty where there is a layout.
        without_batch: the inputs that have no axis of images: every rank needs all of these.
    """

    layout: BatchLayout | None
    why_all: str = ""
    without_batch: frozenset[str] = frozenset()

    def rows(self, n: int, rank: int) -> slice:
        """Return the rows of a batch of *n* images that *rank* needs."""
        if self.layout is None:
            return slice(0, n)
        counts = self.layout.of(n).counts
        start = sum(counts[:rank])
        return slice(start, start + counts[rank])


def needed(program: Program, trace: Trace) -> Need:
    """Return which images of its inputs a *program*, made of *trace*, needs. Not collective."""
    images = images_of(trace)
    layouts: dict[BatchLayout, str] = {}
    without = set()
    why = ""
    for entry, name in program.entries.items():
        value = trace.values[entry]
        if images and batch_axis(value, images) is None:
            without.add(name)
            continue
        if entry in program.returned:
            why = why or f"it returns {name!r}"
        for step in program.consumers.get(entry, []):
            layout = _layout(step, value)
            if layout is None:
                why = why or _takes_all(step, program)
            else:
                layouts.setdefault(layout, _title(step, program))
    if not why and len(layouts) > 1:
        first, second = list(layouts.values())[:2]
        why = f"{first} and {second} compute unlike shares of it"
    elif not why and not layouts:
        why = "none of its layers takes an input by scheme 'batch'"
    layout = None if why else next(iter(layouts))
    return Need(layout, why, frozenset(without))


def checked(inputs: Mapping[str, Input], need: Need, rank: int) -> dict[str, Input]:
    """Return *inputs* as they are taken: of all images, rows are the whole tensor.

    Raises:
        HetmpError: rows that do not fit *need* on this *rank*, or each other.
    """
    images = _images(inputs)
    taken = dict(inputs)
    for name, x in inputs.items():
        if not isinstance(x, Rows):
            continue
        if x.n != images:
            first = next(iter(inputs))
            raise HetmpError(
                f"{name!r} is rows of a batch of {x.n} images, and {first!r} is of {images}: give "
                "all inputs of one batch"
            )
        if name in need.without_batch:
            raise HetmpError(
                f"{name!r} has no axis that is as long as the batch: give it whole, not as "
                "hetmp.Rows"
            )
        wanted = need.rows(images, rank)
        if len(x.mine) == wanted.stop - wanted.start:
            taken[name] = x.mine if need.layout is None else Rows(x.mine, images)
        elif need.layout is None:
            raise HetmpError(
                f"{name!r} is {len(x.mine)} rows of a batch of {images}, and the model needs all "
                f"of it on every rank, as {need.why_all}: give the rows that "
                f"model.hetmp.rows({images}) says, which are all"
            )
        else:
            raise HetmpError(
                f"{name!r} is {len(x.mine)} rows of a batch of {images}, and this rank needs "
                f"{wanted.stop - wanted.start}, from {wanted.start} to {wanted.stop}: give the "
                f"rows that model.hetmp.rows({images}) says"
            )
    return taken


def _images(inputs: Mapping[str, Input]) -> int:
    """Return the number of images of a pass: see ``whole_shape`` of the first input."""
    for name, x in inputs.items():
        if isinstance(x, Rows):
            if not isinstance(x.mine, Tensor) or not x.mine.dim():
                raise HetmpError(
                    f"{name!r} is {x!r}: hetmp.Rows takes a tensor whose first axis is the images"
                )
            images: object = x.n
            if not isinstance(images, Integral):
                raise HetmpError(
                    f"{name!r} is rows of a batch of {x.n!r} images: give a whole number"
                )
    shape = whole_shape(next(iter(inputs.values())))
    return int(shape[0]) if shape else 0


def _layout(step: ProgramStep, value: Value) -> BatchLayout | None:
    """Return how a step that takes an input, *value*, cuts it along its first axis, the images."""
    if not isinstance(step, ExchangeStep):
        return None
    layout = batch_of(step.after)
    if layout is None or layout.block != 1:
        return None
    assert isinstance(step.after, Sliced)
    return None if step.after.axis % value.dims else layout


def _takes_all(step: ProgramStep, program: Program) -> str:
    hooked = isinstance(step, HookedStep)
    return f"{_title(step, program)} {'sees whole values' if hooked else 'takes all images'}"


def _title(step: ProgramStep, program: Program) -> str:
    """Name a step for the reader; of an exchange, who takes its result."""
    if isinstance(step, ExchangeStep):
        return _title(program.consumers[step.name][0], program)
    if isinstance(step, HookedStep):
        return f"a hook on {step.title}"
    return step.node.place if isinstance(step, CallStep) else step.name
