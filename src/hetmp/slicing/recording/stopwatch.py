"""Times the steps of a forward and backward pass on this rank, each apart."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hetmp.cluster.slowdown import Slowdown
from hetmp.ops import tensors_in
from hetmp.slicing.schedule import CallStep, ExchangeStep, ProgramStep

PHASE = "phase"
"""The part of a mark for time outside the steps of the program."""


@dataclass
class StepTimes:
    """Seconds of one step of the program, by the wall clock and on this thread's CPU.

    Attributes:
        forward, backward: (wall, CPU); backward without what is in ``parameters``.
        parameters: (wall, CPU) of parameter gradients that are computed apart.
        saved: bytes that the forward pass keeps for the backward pass.
    """

    forward: tuple[float, float] = (0.0, 0.0)
    backward: tuple[float, float] = (0.0, 0.0)
    parameters: tuple[float, float] = (0.0, 0.0)
    saved: int = 0


@dataclass(frozen=True)
class Mark:
    """An event: time from here on belongs to (name of the step, part)."""

    name: str
    part: str
    wall: float
    cpu: float


@dataclass
class Stopwatch:
    """A ``Watch`` that marks when steps begin and end.

    A step's forward time is the time since the step before it ended. Its backward time runs from
    the arrival of its output's gradient to that of the next step's. What *slowdown* sleeps, also at
    the exchanges within a step, belongs to none.
    """

    device: torch.device
    slowdown: Slowdown = field(default_factory=Slowdown)
    marks: list[Mark] = field(default_factory=list)
    saved: dict[str, int] = field(default_factory=dict)
    _pending: dict[Any, int] = field(default_factory=dict)
    _seen: set[Any] = field(default_factory=set)
    _exchanged: dict[int, str] = field(default_factory=dict)

    # --- called while a step runs

    def mark(self, name: str, part: str) -> None:
        """Count time from here on for a part of a step."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        wall = time.perf_counter() - self.slowdown.slept
        self.marks.append(Mark(name, part, wall, time.thread_time()))

    def phase(self, name: str) -> None:
        """Count time from here on for a phase, outside the program."""
        self.mark(name, PHASE)

    def began(self) -> None:
        """Mark the start of the forward pass."""
        self.mark("", "began")

    def made(self, step: ProgramStep, value: Any) -> None:
        """Mark the end of a step's forward pass."""
        self.mark(step.name, "made")
        for tensor in tensors_in(value):
            if isinstance(step, ExchangeStep):
                self._exchanged[tensor.untyped_storage().data_ptr()] = step.name
            if tensor.requires_grad:
                tensor.register_hook(self._hook(step.name))
        self.saved[step.name] = self.saved.get(step.name, 0) + sum(self._pending.values())
        self._pending.clear()

    @contextmanager
    def parameters(self, step: CallStep) -> Iterator[None]:
        """Time a step's parameter gradients, which are computed apart."""
        before = self.marks[-1]
        self.mark(step.name, "parameters")
        yield
        self.mark(before.name, before.part)

    def _hook(self, name: str) -> Any:
        def arrived(gradient: Tensor) -> None:
            self.mark(name, "backward")

        return arrived

    @contextmanager
    def memory(self, module: torch.nn.Module) -> Iterator[None]:
        """Count the bytes saved for the backward pass, besides the module's own tensors."""
        own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
        self._seen.clear()

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            pointer = storage.data_ptr()
            # Rehearsed exchanges give the same memory again: each counts for itself.
            key = pointer, self._exchanged.get(pointer)
            if pointer not in own and key not in self._seen:
                self._seen.add(key)
                self._pending[key] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield

    # --- called afterwards

    def times(self) -> dict[str, StepTimes]:
        """Return the times of every step since the last ``reset()``; the rest under ""."""
        by_step: dict[str, StepTimes] = {}
        for mark, following in zip(self.marks, self.marks[1:], strict=False):
            took = following.wall - mark.wall, following.cpu - mark.cpu
            name, part = mark.name, mark.part
            if part == PHASE:
                part = "forward"
            elif part in ("began", "made"):
                name, part = (following.name if following.part == "made" else ""), "forward"
            times = by_step.setdefault(name, StepTimes())
            before = getattr(times, part)
            setattr(times, part, (before[0] + took[0], before[1] + took[1]))
        for name, size in self.saved.items():
            by_step.setdefault(name, StepTimes()).saved = size
        return by_step

    def reset(self) -> None:
        """Forget the marks; the counts of saved bytes stay."""
        self.marks.clear()
