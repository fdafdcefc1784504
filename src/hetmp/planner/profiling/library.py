"""A folder of stored profiles, one file per task, kind of node and device.

``FOLDER/TASK/KIND/DEVICE.json``, each an ordinary profile of one device without links: see
``docs/profile-format.md``. Plain files: one process reads and writes them.
"""

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hetmp.cluster.slurm import safe_name
from hetmp.core.errors import HetmpError
from hetmp.planner.profiling.profile import DeviceProfile, Profile
from hetmp.slicing import Tuning
from hetmp.slicing.graph import ModelGraph, fingerprint


@dataclass(frozen=True)
class Task:
    """The work for which devices are measured: the steps of a model with a batch.

    Attributes:
        name: folder name, unique for everything that affects a device's times.
        model: the network's name, for the reader.
        batch_size: images of a step.
        dtype: precision of the computation.
    """

    name: str
    model: str
    batch_size: int
    dtype: str

    @classmethod
    def of(cls, model: str, graph: ModelGraph, example: Tensor, tuning: Tuning) -> "Task":
        """Make the task of a model on batches like *example*, (n, c, *spatial).

        Args:
            model: its name, for the reader.
            graph: the model; its fingerprint becomes part of the task's name.
            example: the batch; its sizes and dtype become part of the task's name.
            tuning: with which the model will run; so do its choices unlike the defaults.
        """
        batch_size, *shape = example.shape
        dtype = str(example.dtype).removeprefix("torch.")
        sizes = "x".join(map(str, shape))
        # One name may stand for several networks: for other classes, or of a file that was edited.
        parts = [safe_name(model), sizes, f"b{batch_size}", dtype, fingerprint(graph)]
        return cls("-".join(parts + _unusual(tuning)), model, batch_size, dtype)


def _unusual(tuning: Tuning) -> list[str]:
    """Return names of the choices that differ from the default: ``regather``, ``no-overlap``."""
    usual = Tuning()
    return [
        ("no-" if getattr(usual, field.name) else "") + field.name.replace("_", "-")
        for field in dataclasses.fields(tuning)
        if getattr(tuning, field.name) != getattr(usual, field.name)
    ]


@dataclass(frozen=True)
class Library:
    """The stored profiles of one task.

    A kind of node may have several devices: a GPU and the processor beside it, or one processor
    with different numbers of threads. Each has a file.

    Attributes:
        folder: the folder of all tasks.
        task: the task of the profiles.
    """

    folder: Path
    task: Task

    def place(self, kind: str, title: str) -> Path:
        """Return the file of the device *title* of a kind of node."""
        return self._shelf(kind) / f"{safe_name(title)}.json"

    def _shelf(self, kind: str) -> Path:
        name = safe_name(kind)
        if not name:
            raise HetmpError(
                f"{kind!r} cannot name a kind of node: use letters and digits, as in gpu-a100"
            )
        return self.folder / self.task.name / name

    def find(self, kind: str, title: str) -> DeviceProfile | None:
        """Return the stored profile of the device *title* of a kind of node; None if there is none.

        Raises:
            HetmpError: the file is damaged or of other work: its name and the remedy.
        """
        path = self.place(kind, title)
        if not os.path.exists(path):
            return None
        try:
            stored = Profile.load(path)
            stored.check_batch(self.task.batch_size, self.task.dtype)
        except HetmpError as error:
            raise HetmpError(f"{error}. Remove {path} to measure the device again") from error
        # A name that was made safe may be another device's, too.
        return next((device for device in stored.devices if device.title == title), None)

    def has_others(self, kind: str) -> bool:
        """Return whether a profile of any device of a kind of node is stored."""
        return any(self._shelf(kind).glob("*.json"))

    def check_writable(self, kind: str) -> None:
        """Refuse a folder that cannot be written, before anything is measured.

        Raises:
            HetmpError: the folder and the reason.
        """
        shelf = self._shelf(kind)
        try:
            shelf.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=shelf):
                pass
        except OSError as error:
            raise self._unwritable(shelf, error) from error

    def keep(self, kind: str, device: DeviceProfile, created: str) -> Path:
        """Store the profile of a device of a kind of node, replacing an older one.

        Args:
            kind: of node.
            device: the profile of its device.
            created: when it was measured, as text.

        Returns:
            The file.

        Raises:
            HetmpError: it cannot be written; the older one stays.
        """
        path = self.place(kind, device.title)
        profile = Profile(
            created=created,
            model=self.task.model,
            batch_size=self.task.batch_size,
            dtype=self.task.dtype,
            devices=(device,),
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            profile.save(path)
        except OSError as error:
            raise self._unwritable(path, error) from error
        return path

    def _unwritable(self, path: Path, error: OSError) -> HetmpError:
        return HetmpError(
            f"{path} cannot be written, so the profile cannot be stored: {error.strerror}. Choose "
            f"a writable folder instead of {self.folder}"
        )


def slowest(devices: Sequence[DeviceProfile]) -> DeviceProfile:
    """Return the device with the longest time for the largest shares measured on all of them."""
    measured = [_seconds(device) for device in devices]
    common = set(measured[0]).intersection(*measured)
    # By work, the largest count.
    largest = {(work, kind): count for work, kind, count in sorted(common)}
    totals = [
        sum(seconds[work, kind, count] for (work, kind), count in largest.items())
        for seconds in measured
    ]
    return devices[totals.index(max(totals))]


def _seconds(device: DeviceProfile) -> dict[tuple[str, str, int], float]:
    """Return the seconds of every (work, kind, count) that was measured."""
    return {
        (times.work, times.kind, count): forward + backward + parameters
        for times in device.works
        for count, forward, backward, parameters in zip(
            times.counts, times.forward, times.backward, times.parameters, strict=True
        )
    }
