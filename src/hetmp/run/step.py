"""One training step: forward, backward, clipping, scaling, optimizer and averages."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hetmp.cluster import AgreedFailure
from hetmp.optim import (
    Averages,
    GradScaler,
    clip_grad_norm_,
    make_optimizer,
    make_schedule,
    share_steps,
)
from hetmp.run.config import TrainConfig
from hetmp.run.evaluate import count_correct
from hetmp.run.own_images import OwnImages
from hetmp.run.precision import casting, wide
from hetmp.slicing import SlicedModel
from hetmp.slicing.not_finite import LOSS, first_not_finite, is_finite
from hetmp.slicing.rows import Input

MOST_SKIPPED = 20
"""Skipped steps in a row after which a run ends, since it learns nothing any more."""


@dataclass(frozen=True)
class StepResult:
    """The result of a step.

    Attributes:
        loss: mean over the labels of the batch.
        correct: number of labels that had the highest score.
        skipped: whether the weights were left as they were.
    """

    loss: float
    correct: int
    skipped: bool = False


class TrainStep:
    """The training step of a run, made from its configuration.

    Attributes:
        optimizer, schedule: of the sliced model's parameters.
        scaler: of the loss, where a rank computes in float16.
        averages: of the weights, where they are averaged.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: SlicedModel,
        steps: int,
        device: torch.device,
        autocast: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            steps: number of steps of the run.
            device: of this rank.
            autocast: dtype of this rank's convolutions; None for that of the weights.

        Raises:
            HetmpError: an optimizer that cannot be sliced, or options that it does not take.
        """
        self._config, self._model, self._device = config, model, device
        self._steps = steps
        self.optimizer = make_optimizer(
            model, config.optimizer, config.lr, config.keywords_of_optimizer
        )
        if config.share_steps:
            share_steps(self.optimizer, model)
        self.schedule = make_schedule(
            self.optimizer,
            config.schedule,
            steps,
            warmup=config.warmup,
            **{
                name: value
                for name in ("gamma", "power", "milestones")
                if (value := getattr(config, name)) is not None
            },
        )
        self._autocast = autocast
        halves = "float16" in (config.autocast or ())
        self.scaler = GradScaler(model, device.type) if halves else None
        self.averages = Averages(model, config.average) if config.average is not None else None
        self._skips, self._skipped = config.on_nan == "skip", 0

    def casting(self) -> AbstractContextManager[Any]:
        """Return a context in which this rank computes in its own precision."""
        return casting(self._autocast, self._device)

    def take(self, images: Input, labels: Tensor) -> StepResult:
        """Take one step on a batch, the same on every rank. Collective.

        Args:
            images: (n, c, *spatial), floating-point; or those that this rank needs of the parts
                that gradients are computed for, as ``OwnImages`` says.
            labels: (n,) or (n, *spatial), int64, whole.

        Raises:
            AgreedFailure: on every rank, if the loss is not finite and the run must stop.
        """
        self.optimizer.zero_grad()
        # A forward pass leaves its mark on running statistics, which a skipped one must not.
        before = [b.clone() for b in self._model.buffers()] if self._skips else []
        loss, correct = 0.0, 0
        parts = list(self._split(images, labels))
        for number, (some, their) in enumerate(parts, start=1):
            last = number == len(parts)
            with nullcontext() if last else self._model.hetmp.sum_later():
                part, right = self._gradients(some, their, len(their) / len(labels))
            loss, correct = loss + part, correct + right
        self._phase("agreeing")
        if self._is_good(loss):
            self._skipped = 0
            self._phase("optimizer")
            return StepResult(loss, correct, skipped=not self._update())
        if not self._skips:
            raise AgreedFailure(
                f"the loss is {loss} at step {self.schedule.last_epoch + 1} of {self._steps}: the "
                f"first value that is not finite is in {self._culprit(images, labels)}; lower "
                "--lr, use --clip, or give --on-nan skip"
            )
        self._skipped += 1
        if self._skipped == MOST_SKIPPED:
            raise AgreedFailure(
                f"{MOST_SKIPPED} steps in a row were skipped because the loss or gradients were "
                f"not finite, the last time in {self._culprit(images, labels)}: lower --lr, or use "
                "--clip"
            )
        for buffer, saved in zip(self._model.buffers(), before, strict=True):
            buffer.copy_(saved)
        return StepResult(loss, correct, skipped=True)

    def _phase(self, name: str) -> None:
        watch = self._model.hetmp.watch
        if watch is not None:
            watch.phase(name)

    def _split(self, images: Input, labels: Tensor) -> Iterator[tuple[Input, Tensor]]:
        return OwnImages(self._model, self._config.accumulate).split(images, labels)

    def _culprit(self, images: Input, labels: Tensor) -> str:
        with self.casting():
            names = (first_not_finite(self._model, some) for some, _ in self._split(images, labels))
            return next((name for name in names if name != LOSS), LOSS)

    def _gradients(self, images: Input, labels: Tensor, share: float) -> tuple[float, int]:
        """Add the gradients of a part of a batch; return (part of the mean loss, labels right)."""
        with self.casting():
            output = self._model(images)
        output = wide(output)
        smoothing = self._config.label_smoothing
        loss = share * nn.functional.cross_entropy(output, labels, label_smoothing=smoothing)
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return float(loss.detach()), count_correct(output, labels)

    def _is_good(self, loss: float) -> bool:
        """Return whether all ranks can use the gradients. Collective."""
        good = math.isfinite(loss)
        if self._skips and self.scaler is None:
            gradients = (p.grad for p in self._model.parameters() if p.grad is not None)
            good = good and all(map(is_finite, (*gradients, *self._model.buffers())))
        flags = self._model.hetmp.group.allgather(np.array([good], dtype=np.int8))
        return bool(flags.all())

    def _update(self) -> bool:
        """Clip, step, average; return whether the step was taken, which the scaler decides."""
        if self._config.clip is not None:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(self._model, self._config.clip)
        if self.scaler is None:
            self.optimizer.step()
        else:
            before = self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.scaler.get_scale() < before:  # a 16-bit gradient has overflowed
                return False
        if self.averages is not None:
            self.averages.update()
        return True

    def evaluated(self) -> AbstractContextManager[Any]:
        """Return a context in which the model has the weights to evaluate: the averages, if any."""
        return nullcontext() if self.averages is None else self.averages.in_place()

    def averaged(self) -> Mapping[str, Tensor]:
        """Return the moving averages by parameter name; empty if nothing is averaged."""
        return {} if self.averages is None else self.averages.tensors

    def state(self) -> str:
        """Return the state that a resumed run needs besides the tensors, as JSON."""
        scaler = None if self.scaler is None else self.scaler.state_dict()
        updates = 0 if self.averages is None else self.averages.updates
        values = {"schedule": self.schedule.state_dict(), "scaler": scaler, "updates": updates}
        return json.dumps(values)

    def resume(self, text: str) -> None:
        """Restore a state that ``state`` returned."""
        state = json.loads(text)
        self.schedule.load_state_dict(state["schedule"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        if self.averages is not None:
            self.averages.updates = state["updates"]
