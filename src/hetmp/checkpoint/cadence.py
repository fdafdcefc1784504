"""How often a run is saved: every so many steps, epochs or seconds."""

import re
import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hetmp.cluster import Group
from hetmp.core.errors import HetmpError

Unit = Literal["steps", "epochs", "seconds"]

_UNITS: dict[str, tuple[Unit, float]] = {
    "": ("steps", 1),
    "step": ("steps", 1),
    "epoch": ("epochs", 1),
    "s": ("seconds", 1),
    "min": ("seconds", 60),
    "h": ("seconds", 3600),
}


@dataclass(frozen=True)
class Cadence:
    """An interval: every *number* of *unit*.

    >>> Cadence.parse("10min")
    Cadence(number=600.0, unit='seconds')
    """

    number: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> "Cadence":
        """Parse ``500`` or ``500steps``, ``2epochs``, ``90s``, ``10min``, ``1h``.

        Raises:
            HetmpError: another text, or 0.
        """
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*?)s?\s*", text.lower())
        unit = None if match is None else match[2]
        if match is not None and unit == "" and text.lower().rstrip().endswith("s"):
            unit = "s"
        if match is None or unit not in _UNITS or float(match[1]) <= 0:
            raise HetmpError(
                f"checkpoint_every: {text!r} is not an interval: give steps (500), epochs "
                "(2epochs) or time (90s, 10min, 1h)"
            )
        kind, scale = _UNITS[unit]
        number = float(match[1]) * scale
        if kind != "seconds" and number != int(number):
            raise HetmpError(f"checkpoint_every: {text!r} is not a whole number of {kind}")
        return cls(number, kind)


@dataclass
class Timer:
    """Decides when a cadence is due. The same on every rank."""

    cadence: Cadence
    group: Group
    _last: float = field(default_factory=time.monotonic)

    def due(self, step: int, epochs: int, *, epoch_ended: bool) -> bool:
        """Return whether to save after *step* steps and *epochs* epochs. Collective for seconds.

        Args:
            step: steps taken in the run.
            epochs: whole epochs done.
            epoch_ended: whether this step ended an epoch.
        """
        number, unit = self.cadence.number, self.cadence.unit
        if unit == "steps":
            return step % int(number) == 0
        if unit == "epochs":
            return epoch_ended and epochs % int(number) == 0
        now = time.monotonic()
        due = np.array([now - self._last >= number])
        if not self.group.broadcast(due)[0]:  # rank 0's clock counts
            return False
        self._last = now
        return True
