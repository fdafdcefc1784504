"""A profile's measurements as functions: seconds of any work, on any rank, for any count."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator

from hetmp.core.errors import HetmpError
from hetmp.planner.profiling import DeviceProfile, Kind, WorkTimes

Array = npt.NDArray[np.float64]

FORWARD, BACKWARD, PARAMETERS, SAVED = range(4)
"""The columns of a table."""


class Tables:
    """Seconds (and saved bytes) of every work on every rank.

    Args:
        devices: one per rank; ranks of one and the same object share its tables.
    """

    def __init__(self, devices: Sequence[DeviceProfile]) -> None:
        self.devices = tuple(devices)
        distinct = {id(device): device for device in self.devices}
        number = {key: i for i, key in enumerate(distinct)}
        self._distinct = tuple(distinct.values())
        self._number = np.array([number[id(device)] for device in self.devices])
        self._works: list[dict[tuple[str, Kind], WorkTimes]] = [
            {(times.work, times.kind): times for times in device.works} for device in self._distinct
        ]
        self._curves: dict[tuple[int, str, Kind, int], Array] = {}
        self._grains: dict[int, int] = {}
        self._tables: dict[tuple[str, Kind], Array] = {}
        self.rest: Array = np.array([device.rest for device in self.devices])
        self.handling: Array = np.array([device.handling for device in self.devices])

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return len(self.devices)

    def of(self, ranks: Sequence[int]) -> "Tables":
        """Return the tables of some of the ranks."""
        some = Tables([self.devices[rank] for rank in ranks])
        some._curves, some._grains = self._curves, self._grains  # the devices are the same
        return some

    def total(self, work: str, kind: Kind) -> int:
        """Return the length of the axis that a work cuts."""
        return len(self._table(work, kind)[0]) - 1

    def at(self, work: str, kind: Kind, counts: Sequence[int] | None) -> Array:
        """Return (ranks, 4): seconds forward, backward and of parameters, and bytes saved.

        Args:
            work: the operation, as ``step_work`` names it.
            kind: how it is cut.
            counts: the channels of every rank; None: each rank does all of the work.
        """
        table = self._table(work, kind)
        if counts is None:
            return np.asarray(table[self._number, -1])
        return np.asarray(table[self._number, np.asarray(counts)])

    def sums(self, work: str, kind: Kind, counts: npt.NDArray[np.int64]) -> Array:
        """Return the total seconds, (ranks, counts), of each of *counts* channels on every rank.

        *work* and *kind* are as in ``at``.
        """
        table = self._table(work, kind)[:, counts, :SAVED].sum(axis=2)
        return np.asarray(table[self._number])

    def has(self, work: str, kind: Kind) -> bool:
        """Return whether a work was measured on every device."""
        return all((work, kind) in works for works in self._works)

    def workspace(self, scheme: str, shares: Array) -> Array:
        """Return (ranks,) bytes that a step of a scheme needs for a while, for *shares* of it.

        A straight line between those that were measured; 0 where none was.
        """
        sizes = np.zeros(self.ranks)
        for rank, device in enumerate(self.devices):
            points = sorted((w.share, w.bytes) for w in device.workspace if w.scheme == scheme)
            if points:
                measured, size = zip(*points, strict=True)
                sizes[rank] = np.interp(shares[rank], measured, size)
        return sizes

    def _table(self, work: str, kind: Kind) -> Array:
        table = self._tables.get((work, kind))
        if table is None:
            for device, works in zip(self._distinct, self._works, strict=True):
                if (work, kind) not in works:
                    raise HetmpError(
                        f"the profile of {device.title} on {device.host} has no times for {work} "
                        f"({kind}): it is of another model; run hetmp profile for this one"
                    )
            times = [works[work, kind] for works in self._works]
            total = max(work_times.total for work_times in times)
            curves = [
                self._curve(device, work_times, total)
                for device, work_times in zip(self._distinct, times, strict=True)
            ]
            table = self._tables[work, kind] = np.stack(curves)
        return table

    def _curve(self, device: DeviceProfile, times: WorkTimes, total: int) -> Array:
        key = id(device), times.work, times.kind, total
        if key not in self._curves:
            if id(device) not in self._grains:
                self._grains[id(device)] = grain_of(device)
            self._curves[key] = curve(times, total, self._grains[id(device)])
        return self._curves[key]


GRAINS = (1, 4, 8, 16, 32)
"""Numbers of channels that a device may compute at once."""


def grain_of(device: DeviceProfile) -> int:
    """Return how many filters a device computes in the time of one, by its measurements.

    Vector units take 8 or 16 channels at a time, so time is a staircase in the number of filters:
    17 of them cost as much as 32. The grain is the step's width for which the counts that are no
    multiple of it are best told from those that are.
    """
    works = [times for times in device.works if times.kind == "filters" and len(times.counts) > 3]
    best, least = 1, np.inf
    for grain in GRAINS:
        missed = []
        for times in works:
            counts = np.array(times.counts)
            off = (counts > 16) & (counts % 16 != 0) & (counts < times.total)
            on = (counts > 0) & ~off
            if not off.any() or on.sum() < 2:
                continue
            columns = np.array([times.forward, times.parameters]).T
            blocks = -(-counts // grain)
            x, first = np.unique(blocks[on], return_index=True)
            if len(x) < 2:
                continue
            fitted = _between(x, columns[on][first], blocks[off])
            seen = columns[off]
            missed += np.abs(np.log(np.maximum(fitted, 1e-9) / np.maximum(seen, 1e-9)))[
                seen > 1e-4
            ].tolist()
        error = float(np.median(missed)) if missed else np.inf
        if error < least:
            best, least = grain, error
    return best


def curve(times: WorkTimes, total: int, grain: int = 1) -> Array:
    """Return (total + 1, 4): forward, backward, parameters and saved for every count.

    Between the measured counts of *times* a monotone cubic (Fritsch and Carlson, 1980; SciPy's
    PCHIP), beyond them a straight line, up to *total*. Nothing is a case of its own: the first
    channel costs more than the next. The forward pass and parameter gradients of filters go up in
    steps of *grain*.
    """
    columns = np.array([times.forward, times.backward, times.parameters, times.saved]).T
    measured = np.array(times.counts)
    if times.total == 1 < total:  # it was never cut where it was measured
        measured = measured * total
    every = np.arange(total + 1)
    some = measured > 0
    if not some.any():
        return np.repeat(columns[:1], total + 1, axis=0)
    table = np.empty((total + 1, 4))
    for column in range(4):
        stepped = times.kind == "filters" and column in (FORWARD, PARAMETERS)
        width = grain if stepped else 1
        x, y = _merged(-(-measured[some] // width), columns[some, column])
        at = -(-every // width)
        table[:, column] = y[0] * at / x[0] if len(x) == 1 else _between(x, y, at)
    table = np.maximum(table, 0.0)
    table[0] = columns[0] if measured[0] == 0 else 0.0
    return table


def _merged(x: npt.NDArray[np.int64], y: Array) -> tuple[npt.NDArray[np.int64], Array]:
    """Return one value for every x: the mean of those that have it."""
    distinct, place = np.unique(x, return_inverse=True)
    return distinct, np.bincount(place, weights=y) / np.bincount(place)


def _between(x: npt.NDArray[Any], y: Array, at: npt.NDArray[Any]) -> Array:
    """Return the monotone cubic through (x, y), with straight lines beyond its ends."""
    values = np.asarray(PchipInterpolator(x, y, axis=0)(np.clip(at, x[0], x[-1])))
    for beyond, end, slope in (
        (at < x[0], x[0], (y[1] - y[0]) / (x[1] - x[0])),
        (at > x[-1], x[-1], (y[-1] - y[-2]) / (x[-1] - x[-2])),
    ):
        far = at[beyond] - end
        values[beyond] += far.reshape([-1, *[1] * (y.ndim - 1)]) * np.maximum(slope, 0)
    return values
