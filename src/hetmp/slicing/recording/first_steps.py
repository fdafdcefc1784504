"""The first steps of a run, looked at layer by layer, for its metrics."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hetmp.slicing.model import SlicedModel
from hetmp.slicing.recording.layer_times import layer_times
from hetmp.slicing.recording.memory import memory_held
from hetmp.slicing.recording.recorder import Recorder, StepRecording

UNTIMED = 2
"""So many steps go before, where there are enough: they allocate, and one counts memory."""


class FirstSteps:
    """Records some of the first steps of a run; the results are the same with and without it.

    Args:
        wanted: how many steps are timed; 0 for none.
        left: how many the run has left to take.
        device: of this rank.
        before: bytes of resident memory before the model was made.
    """

    def __init__(
        self, model: SlicedModel, wanted: int, left: int, device: torch.device, before: int
    ) -> None:
        self._model, self._device, self._before = model, device, before
        self._untimed = min(UNTIMED, left // 2)
        self._wanted = min(wanted, left - self._untimed)
        self._step_count, self._activations = 0, 0
        self._steps: list[StepRecording] = []
        self.recorder = Recorder(model, device) if self._wanted > 0 else None

    @contextmanager
    def step(self) -> Iterator[None]:
        """Wrap every step of the run in this context."""
        self._step_count += 1
        if self.recorder is None or self._step_count > self._untimed + self._wanted:
            yield
            return
        counts = self._step_count == max(1, self._untimed)
        if self._step_count <= self._untimed and not counts:
            yield
            return
        steps: list[StepRecording] = []
        with self.recorder.step(steps, memory=counts):
            yield
        if counts:
            self._activations = steps[0].saved
        if self._step_count > self._untimed:
            self._steps += steps

    def due_records(
        self, optimizer: torch.optim.Optimizer, step: int, images: int
    ) -> dict[str, dict[str, Any]]:
        """Return the records that are due, by kind, once each. Collective where any is due.

        Args:
            optimizer: whose state is counted as memory.
            step: how many steps the run has taken.
            images: of the last step.
        """
        if self.recorder is None or self._step_count != self._untimed + self._wanted:
            return {}
        times = layer_times(self._model.hetmp.group, self.recorder, self._steps)
        held = memory_held(self._model, optimizer, self._device, self._activations, self._before)
        self._steps.clear()
        span = {"first": step - self._wanted, "steps": self._wanted, "images": images}
        return {"layers": {**span, **times}, "memory": held}
