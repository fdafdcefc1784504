"""``verify``: run a module and what was read of it on the same values, and compare."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hetmp.core.errors import HetmpError
from hetmp.ops import generators_kept, seed_pythons
from hetmp.slicing.graph import (
    EVALUATION,
    TRAINING,
    Mode,
    ModelGraph,
    Unconfirmed,
    confirm,
)
from hetmp.slicing.table import tensors_of
from hetmp.slicing.verification.autograd_graph import backward_operations
from hetmp.slicing.verification.batches import (
    IMAGES,
    copied,
    drawn_values,
    first_values,
    sides,
)
from hetmp.slicing.verification.copies import ReadCopy, call_own, own_copy
from hetmp.slicing.verification.differences import (
    allowed,
    attributes,
    changed_attributes,
    distance,
    leaves,
)
from hetmp.slicing.verification.first_difference import CallRecorder, first_foreign
from hetmp.slicing.verification.verification import Verification
from hetmp.slicing.verification.words import shown_difference, users_place, when

_SEED = 20210407
"""Of all random numbers here; any number will do."""

_NOISE = 10.0
"""How many times the module's own difference from run to run is allowed."""

_UNSTEADY = 1e-3
"""A module whose own results differ by more draws random numbers that hetmp does not see."""


@dataclass(frozen=True)
class Pass:
    """A call of the module: its mode, on which values, and whether a backward pass is sure to run.

    Elsewhere one runs only where it would not run the same operations for both.
    """

    mode: Mode
    values: int
    backward: bool


PASSES = (
    Pass(TRAINING, 0, backward=True),
    Pass(TRAINING, 1, backward=False),
    Pass(EVALUATION, 0, backward=False),
    Pass(Mode(training=False, grad=False), 1, backward=False),
)
"""What is compared, in this order. A second call shows what a call leaves behind."""


def verify(graph: ModelGraph, module: nn.Module, values: Mapping[str, Tensor]) -> Verification:
    """Compare *module* with what was read of it, forward and backward, in all modes.

    The module, its buffers and the random generators are afterwards as they were. Not collective.

    Args:
        graph: what was read of *module*.
        module: with values, on one device.
        values: the example's inputs that have values, by name.

    Raises:
        HetmpError: they differ; the message names the first operation that does and its line.
    """
    if any(tensor.is_meta for tensor in tensors_of(module).values()):
        return Verification("the module has no values yet")
    if not graph.example.tensors:
        return Verification("the sizes of its input are not known: give an example_input")
    device = next(tensor.device for tensor in tensors_of(module).values())
    if device.type != graph.example.device.type and _asks_for_device(graph):
        return Verification(f"it decides by its device, and lies on another one: {device}")
    with generators_kept(), torch.inference_mode(mode=False):
        # On smaller images a step is cheaper. A module that they do not fit, or that decides by
        # their size, is run on the example's, and where it decides by their number on all.
        *smaller, last = sides(graph)
        for side in smaller:
            try:
                outcome = _compared(graph, module, values, device, side)
            except HetmpError:
                continue
            if outcome.reason is None:
                return outcome
        try:
            return _compared(graph, module, values, device, last)
        except Unconfirmed:
            return _compared(graph, module, values, device, last, whole=True)


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal, which is quickly seen but for NaNs."""
    return torch.equal(a, b) or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def _asks_for_device(graph: ModelGraph) -> bool:
    return any(
        node.call.target is confirm and isinstance(node.call.argument(1, ""), str | torch.device)
        for node in graph.nodes
    )


def _compared(
    graph: ModelGraph,
    module: nn.Module,
    values: Mapping[str, Tensor],
    device: torch.device,
    side: int | None,
    whole: bool = False,
) -> Verification:
    """Compare on images of *side*, on *device*, on all if *whole*; see ``verify``."""
    torch.manual_seed(_SEED)
    images = None if whole else IMAGES
    batches = [
        {name: x.to(device) for name, x in batch.items()}
        for batch in (
            first_values(graph, values, side, images),
            drawn_values(graph, side, images),
        )
    ]
    try:
        return _Comparison(graph, module, batches, whole=whole).run()
    except _OwnFailure as failure:
        return Verification(str(failure))
    except (MemoryError, torch.OutOfMemoryError):
        return Verification("the memory does not suffice for two copies of a step")


class _OwnFailure(Exception):
    """The module itself fails, so there is nothing to compare with."""


class _Comparison:
    """A module and what was read of it, side by side, pass by pass.

    Args:
        graph: what was read of *module*.
        module: with values.
        batches: the values of the inputs, by name, that the passes take.
        whole: whether the *batches* have all images of the example.
    """

    def __init__(
        self,
        graph: ModelGraph,
        module: nn.Module,
        batches: Sequence[Mapping[str, Tensor]],
        whole: bool = False,
    ) -> None:
        self.graph, self.module, self.batches, self.whole = graph, module, batches, whole
        self.own, self.read = own_copy(module), ReadCopy(graph, module)
        self.marks, self.attributes = _marks(self.own), attributes(self.own)
        self.number = 0

    @property
    def part(self) -> Pass:
        """The pass that runs."""
        return PASSES[self.number]

    @property
    def changed(self) -> list[str]:
        """The plain attributes that the module's forward has set so far."""
        return changed_attributes(self.attributes, attributes(self.own))

    def run(self) -> Verification:
        """Compare all passes; see ``verify``."""
        for self.number in range(len(PASSES)):
            with _own(f"the module itself fails {when(self.part.mode)}"):
                own = self.call_own()
            try:
                read = self.call_read()
            except Exception as error:
                if _is_memory(error):
                    raise MemoryError from error
                if isinstance(error, Unconfirmed) and not self.whole:
                    raise
                raise self.refusal(f"fails: {error}") from error
            self.compare(own, read)
        return Verification(None, tuple(self.changed))

    def call_own(self) -> Any:
        """Return what the module itself gives."""
        with _as_in(self.part.mode, self.own):
            return call_own(self.own, self.graph, copied(self.batches[self.part.values]))

    def call_read(self) -> Any:
        """Return what the operations that were read give."""
        with _as_in(self.part.mode, self.read):
            return self.read(self.part.mode, copied(self.batches[self.part.values]))

    def compare(self, own: Any, read: Any) -> None:
        """Refuse outputs, parameters, buffers and gradients that differ."""
        wanted, made = dict(leaves(own)), dict(leaves(read))
        if list(wanted) != list(made):
            raise self.refusal("returns something else")
        self.check(wanted, made)
        for name in self.changed_parameters():
            raise self.refusal(f"does not change the parameter {name!r}")
        names = set(tensors_of(self.graph.skeleton))
        self.check(_buffers(self.own, names), _buffers(self.read.whole, names))
        if self.part.backward or self.backward_differs(wanted, made):
            self.compare_gradients(wanted, made)

    def compare_gradients(self, wanted: Mapping[str, Any], made: Mapping[str, Any]) -> None:
        """Run the backward pass of both and refuse gradients that differ."""
        with _own(f"the module's own backward pass fails {when(self.part.mode)}"):
            own = _gradients(self.own, wanted)
        try:
            read = _gradients(self.read.whole, made)
        except RuntimeError as error:
            if _is_memory(error):
                raise MemoryError from error
            raise self.refusal(f"fails in its backward pass: {error}") from error
        self.check(own, {name: read.get(name) for name in own})
        # A checkpoint's backward pass runs its layers again, batch norms too.
        own_buffers = dict(self.own.named_buffers())
        for name, buffer in self.read.whole.named_buffers():
            if name in own_buffers:
                buffer.copy_(own_buffers[name])

    def backward_differs(self, wanted: Mapping[str, Any], made: Mapping[str, Any]) -> bool:
        """Return whether the backward passes would run other operations, or reach other parameters.

        They may still be the same: an operation can be written in two ways.
        """
        own = backward_operations(wanted.values(), self.own)
        return own != backward_operations(made.values(), self.read.whole)

    def check(self, wanted: Mapping[str, Any], made: Mapping[str, Any]) -> None:
        """Refuse values, by name, that differ by more than the module does from run to run."""
        apart = {name: distance(made[name], value) for name, value in wanted.items()}
        suspects = {name: far for name, far in apart.items() if far > allowed(wanted[name])}
        if not suspects:
            return
        noise = self.noise(wanted)
        name, far = next(iter(suspects.items()))
        if noise > _UNSTEADY:
            raise HetmpError(
                f"{self.graph.inputs.title} gives other values for {name} from run to run, though "
                "the random generators of torch, numpy and Python are at the same place: its ranks "
                "would part ways. Draw from torch's own generator, and depend on no clock nor "
                "on a counter in a global, a class or a closure"
            )
        if all(far <= _NOISE * noise for far in suspects.values()):
            return
        shown = shown_difference(made[name], wanted[name], far)
        raise self.refusal(f"gives another value for {name}: {shown}")

    def changed_parameters(self) -> Iterator[str]:
        """Yield the parameters that the module changes otherwise than what was read of it.

        An average that follows other parameters may well give what was there: it is a change.
        """
        read, marks = dict(self.read.whole.named_parameters()), _marks(self.own)
        for name, own in self.own.named_parameters():
            if name in read and (
                not _is_same(own, read[name])
                or (marks[name] != self.marks[name] and not self.read.runs_own_code(name))
            ):
                yield name

    def noise(self, wanted: Mapping[str, Any]) -> float:
        """Return how far the module's own results of this pass are from those of another run."""
        again = _Comparison(self.graph, self.module, self.batches)
        for again.number in range(self.number + 1):
            outputs = dict(leaves(again.call_own()))
            gradients = _gradients(again.own, outputs) if again.part.backward else {}
        results = {**outputs, **_buffers(again.own, {*tensors_of(self.module)}), **gradients}
        return max(distance(results[name], value) for name, value in wanted.items())

    def refusal(self, what: str) -> HetmpError:
        """Return the exception for a pass in which what was read does something else."""
        place, changed = self.first_difference(), self.changed
        at = f", first at {place}" if place else ""
        sets = f" Its forward sets {', '.join(map(repr, changed))}." if changed else ""
        return HetmpError(
            f"{self.graph.inputs.title} cannot be read as it runs: {when(self.part.mode)}, what "
            f"was read of it {what}{at}.{sets} A forward is read once, so it may not depend on "
            "what it changes itself, nor on anything but its inputs' sizes, its parameters and its "
            "mode: mark the module that does with hetmp.leaf(module), to keep it whole"
        )

    def first_difference(self) -> str | None:
        """Run the passes again and return the first operation that differs in this one."""
        again = _Comparison(self.graph, self.module, self.batches)
        own, read = CallRecorder(users_place), CallRecorder(lambda name: again.read.place or name)
        try:
            for again.number in range(self.number):
                again.call_own()
                again.call_read()
            again.number = self.number
            with own:
                again.call_own()
            with read:
                again.call_read()
        except Exception:  # what was recorded up to here is looked at
            pass
        wanted, made = first_foreign(own, read), first_foreign(read, own)
        if wanted is None or made is None or wanted == made:
            return wanted or made
        return f"{wanted}, where {made} was read"


def _buffers(module: nn.Module, names: set[str]) -> dict[str, Tensor]:
    return {
        f"the buffer {name!r}": value for name, value in module.named_buffers() if name in names
    }


def _marks(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Return of every parameter how often it was changed in place, and where it lies."""
    return {name: (p._version, p.data_ptr()) for name, p in module.named_parameters()}


def _gradients(module: nn.Module, outputs: Mapping[str, Any]) -> dict[str, Tensor | None]:
    """Run the backward pass of a weighted sum of the outputs; return the gradients, by name."""
    generator = torch.Generator().manual_seed(_SEED)
    summands = []
    for value in outputs.values():
        if isinstance(value, Tensor) and value.requires_grad:
            real = torch.view_as_real(value) if value.is_complex() else value
            slope = torch.randn(real.shape, generator=generator, dtype=torch.float64)
            summands.append((real * slope.to(real.device, real.dtype)).sum())
    module.zero_grad()
    if summands:
        torch.stack([summand.to(summands[0].dtype) for summand in summands]).sum().backward()
    return {f"the gradient of {name!r}": p.grad for name, p in module.named_parameters()}


@contextmanager
def _own(what: str) -> Iterator[None]:
    """Run the module itself inside; where it fails, *what* says how."""
    try:
        yield
    except HetmpError:
        raise
    except Exception as error:
        if _is_memory(error):
            raise MemoryError from error
        first = (str(error).splitlines() or [""])[0]
        raise _OwnFailure(f"{what}: {type(error).__name__}: {first}") from error


def _is_memory(error: Exception) -> bool:
    """Return whether memory ran out: on the CPU torch raises a plain ``RuntimeError``."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


@contextmanager
def _as_in(mode: Mode, module: nn.Module) -> Iterator[None]:
    """Put *module* into a mode and the random generators at their start."""
    module.train(mode.training)
    torch.manual_seed(_SEED)
    seed_pythons(_SEED)
    with torch.set_grad_enabled(mode.grad):
        yield
