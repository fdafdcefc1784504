"""What a training run saves about itself, and how it resumes."""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hetmp.checkpoint.background import Saver
from hetmp.checkpoint.cadence import Cadence, Timer
from hetmp.checkpoint.folder import Folder, newest_sound
from hetmp.checkpoint.format import TRAINING
from hetmp.checkpoint.save_load import gather, restore
from hetmp.checkpoint.write import Contents, write
from hetmp.cluster import AgreedError, AgreedFailure, Group
from hetmp.core.errors import HetmpError
from hetmp.slicing import SlicedModel
from hetmp.slicing.not_finite import not_finite
from hetmp.slicing.plan import Plan

STEPS = "loss", "accuracy", "lr"
EVALUATIONS = "step", "loss", "accuracy"


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        step: steps taken.
        epoch, batch: which batch of which epoch comes next, from 0.
        steps: loss, accuracy and learning rate of every step so far.
        evaluations: step, loss and accuracy of every evaluation so far.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    steps: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in STEPS})
    evaluations: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in EVALUATIONS}
    )

    def took(self, record: Mapping[str, float], per_epoch: int) -> None:
        """Record a step, of *per_epoch* in an epoch."""
        for name in STEPS:
            self.steps[name].append(record[name])
        self.step += 1
        self.epoch, self.batch = (
            (self.epoch, self.batch + 1) if self.batch + 1 < per_epoch else (self.epoch + 1, 0)
        )

    def evaluated(self, record: Mapping[str, float]) -> None:
        """Record an evaluation of the test set."""
        for name in EVALUATIONS:
            self.evaluations[name].append(record[name])

    def last(self, name: str) -> float:
        """Return the last step's figure; NaN before the first."""
        return self.steps[name][-1] if self.steps[name] else math.nan

    @property
    def accuracy(self) -> float:
        """Accuracy of the last evaluation; NaN before the first."""
        accuracies = self.evaluations["accuracy"]
        return accuracies[-1] if accuracies else math.nan

    def values(self) -> dict[str, Any]:
        """Return the position as a checkpoint stores it, under ``/training``."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "steps": {name: np.array(figures) for name, figures in self.steps.items()},
            "evaluations": {name: np.array(figures) for name, figures in self.evaluations.items()},
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Position":
        """Rebuild the position from its ``values``."""
        return cls(
            values["step"],
            values["epoch"],
            values["batch"],
            {name: values["steps"][name].tolist() for name in STEPS},
            {name: values["evaluations"][name].tolist() for name in EVALUATIONS},
        )


class Advancing(Protocol):
    """The state that a run's steps need to continue, besides the model.

    Attributes:
        optimizer: of the model's parameters.
    """

    optimizer: torch.optim.Optimizer

    def averaged(self) -> Mapping[str, Tensor]:
        """Return the moving averages of parameters, by name; their values may be set."""
        ...

    def state(self) -> str:
        """Return all other state, as JSON."""
        ...

    def resume(self, text: str) -> None:
        """Restore what ``state`` returned."""
        ...


@dataclass(frozen=True)
class Keeping:
    """How a run is saved.

    Attributes:
        folder: for the checkpoints; none are written if None.
        cadence: how often; never if None.
        behind: whether to write while the training continues.
        stop: whether a checkpoint that cannot be written ends the run.
    """

    folder: Folder | None
    cadence: Cadence | None
    behind: bool = False
    stop: bool = True


class RunCheckpoints:
    """Saves a run, and resumes one.

    Args:
        config: of the run, as plain values; what must be the same when it is resumed, but for
            those that are ``movable``.
        plan: of all ranks of the job.
    """

    def __init__(
        self,
        model: SlicedModel,
        steps: Advancing,
        plan: Plan,
        config: Mapping[str, Any],
        keeping: Keeping,
        movable: Collection[str] = (),
    ) -> None:
        self.model, self.steps = model, steps
        self.plan, self.config, self.keeping = plan, dict(config), keeping
        self.movable = movable
        self.group: Group = model.hetmp.group
        self._timer = Timer(keeping.cadence, self.group) if keeping.cadence else None
        self._saver = Saver(self.group, behind=keeping.behind)
        self._saved = -1
        self._newest: Path | None = None

    # --- taking up

    def resume(self, source: str, searched: Path | None) -> tuple[Position, str]:
        """Restore a run; return its position and a line that says from what. Collective.

        Args:
            source: ``auto`` (the newest sound checkpoint, or the start) or a file or folder.
            searched: the folder where ``auto`` looks.

        Raises:
            HetmpError: on every rank: nothing sound there, or a checkpoint of another run.
        """
        path = searched if source == "auto" else Path(source)
        if path is None:
            raise AgreedError("resume auto needs the run's folder: give it with out")
        file, damaged = newest_sound(self.group, path, named=source != "auto")
        if file is not None:
            position = self._taken_up(file)
            self._newest = file
            line = f"resumed from {file}: {position.step} steps, {position.epoch} whole epochs"
            return position, "\n".join([*(f"passed over: {why}" for why in damaged), line])
        if source != "auto" or damaged:
            raise AgreedError(
                "\n".join([f"there is no sound checkpoint in {path}", *damaged])
                + ("\nstart anew without --resume" if source == "auto" else "")
            )
        return Position(), f"nothing to resume in {path}: starting anew"

    def _taken_up(self, file: Path) -> Position:
        def check(training: Mapping[str, Any]) -> None:
            if "schedule" not in training:
                raise HetmpError(
                    f"{file} is not a checkpoint of a training run: it holds only the network, "
                    "and nothing to resume from"
                )
            before = json.loads(training["config"])
            for name, value in self.config.items():
                if name not in self.movable and before.get(name) != value:
                    raise HetmpError(
                        f"{file} was saved by a run with {name} {before.get(name)}, but this run "
                        f"has {value}: give the same value to resume, or start anew"
                    )

        stored = restore(
            self.model,
            file,
            self.steps.optimizer,
            averages=self.steps.averaged(),
            verified=True,
            check=check,
        )[TRAINING]
        self.steps.resume(stored["schedule"])
        return Position.of(stored)

    # --- saving

    def passed(self, position: Position, *, epoch_ended: bool = False) -> str:
        """Save if the cadence is due; see ``save``. Collective."""
        due = self._timer is not None and self._timer.due(
            position.step, position.epoch, epoch_ended=epoch_ended
        )
        return self.save(position) if due else ""

    def save(self, position: Position) -> str:
        """Save the run as it is; return a message to print, usually empty. Collective.

        Raises:
            HetmpError: on every rank, if it cannot be saved and a run is to stop for that.
        """
        folder = self.keeping.folder
        if folder is None or self._saved == position.step:
            return ""
        wrong = not_finite(self.model)
        if wrong is not None:
            raise AgreedFailure(
                f"after step {position.step} {wrong} is not finite: nothing is "
                f"saved{self.last_good()}"
            )
        training = {
            **position.values(),
            "schedule": self.steps.state(),
        }
        contents = self._gathered(training, whole=True)
        try:
            step = position.step
            self._saver.save(folder.at(step), contents, lambda: folder.written(step))
            self._saved, self._newest = step, folder.at(step)
        except HetmpError as error:
            return self._failed(error)
        return ""

    def save_network(self, path: Path, step: int) -> None:
        """Write the network and the run's settings alone, after *step* steps. Collective.

        Raises:
            HetmpError: on every rank, if it cannot be written; what was at *path* stays.
        """
        write(self.group, path, self._gathered({"step": step}, whole=False))

    def last_good(self) -> str:
        """Name the newest checkpoint, as the end of a message on why the run ended."""
        if self._newest is None:
            return ""
        return f"; the last good checkpoint is {self._newest}, which --resume can continue"

    def _gathered(self, training: Mapping[str, Any], *, whole: bool) -> Contents:
        """Gather the contents of a file of this run, its settings included. Collective.

        Args:
            whole: with what it takes to go on, not the network alone.
        """
        stored = {**training, "config": json.dumps(self.config)}
        return gather(
            self.model,
            self.steps.optimizer if whole else None,
            stored,
            plan=self.plan,
            attributes={"model": str(self.config.get("model", ""))},
            averages=self.steps.averaged() if whole else None,
        )

    def finish(self) -> str:
        """Wait for the checkpoint being written; see ``save``. Collective."""
        try:
            self._saver.wait()
        except HetmpError as error:
            return self._failed(error)
        return ""

    def _failed(self, error: HetmpError) -> str:
        if self.keeping.stop:
            raise error
        return (
            f"no checkpoint was saved: {error}\ntraining continues, and the last checkpoint is kept"
        )
