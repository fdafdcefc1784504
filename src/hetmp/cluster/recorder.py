"""The last exchanges of a rank, in order: what every rank of a group must do alike.

Ranks that enter different exchanges wait for each other for ever, or end in a message of MPI that
names neither. So each notes what it enters: ``Group.record`` compares the notes of the ranks in
the first steps, and ``watchdog`` shows them when a rank waits for too long. A note costs about a
microsecond: no clock is read, no text is made and nothing is sent.
"""

import platform
import zlib
from collections import deque
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from hetmp.core.errors import FailedError

KEPT = 512
"""How many exchanges a rank remembers."""

SHOWN = 3
"""How many of them it shows before the one in which it waits."""

OUTSIDE, INSIDE, ENDED = range(3)
"""Where a rank is: in no exchange, in one, or at the end of its program."""

COLUMNS = 3
"""Numbers that a rank writes into the table: its last exchange, the bytes of it, where it is."""


class Entry:
    """One exchange on this rank; a context, entered whenever the rank may wait for others in it.

    Attributes:
        number: how many exchanges of the group came before it.
        name: of the collective.
        value: what travels, for the reader.
        direction: forward, backward, or empty.
        size: bytes of the whole value: the same on all ranks, whatever their shares; 0 if unknown.
        finished: whether it is over on this rank, and not only begun.
    """

    __slots__ = ("_outer", "_recorder", "direction", "finished", "name", "number", "size", "value")

    def __init__(
        self,
        recorder: "ExchangeRecorder",
        number: int,
        name: str,
        value: str,
        direction: str,
        size: int,
    ) -> None:
        self._recorder, self.number = recorder, number
        self.name, self.value, self.direction, self.size = name, value, direction, size
        self.finished = False
        self._outer: Entry | None = None

    def __enter__(self) -> "Entry":
        recorder = self._recorder
        self._outer = recorder.inside
        recorder.inside = self
        recorder.turn += 1
        recorder.publish(INSIDE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        recorder = self._recorder
        self.finished = error is None
        recorder.inside, self._outer = self._outer, None
        recorder.turn += 1
        recorder.publish(OUTSIDE if recorder.inside is None else INSIDE)
        if error is not None and type(error).__module__.startswith("mpi4py"):
            what = str(error).partition("\n")[0].removesuffix(", error stack:")
            raise FailedError(
                f"{recorder.who} in exchange {self}: {what}; {recorder.others()}{ALIKE}"
            ) from error

    @property
    def key(self) -> int:
        """A number for the collective, what travels and its direction."""
        return zlib.crc32(f"{self.name}\n{self.value}\n{self.direction}".encode())

    def __str__(self) -> str:
        of = f" of {self.value}" if self.value else ""
        way = f", {self.direction}" if self.direction else ""
        size = f", {self.size:,} bytes" if self.size else ""
        return f"{self.number}: {self.name}{of}{way}{size}"


ALIKE = (
    "all ranks must enter the same exchanges in the same order, with the same sizes: call the "
    "model, its backward pass and hetmp's collective functions equally often on every rank"
)
"""What to do about ranks that are not in the same exchange."""


class ExchangeRecorder:
    """The exchanges of one communicator on this rank.

    Attributes:
        rank, size: this rank's number, and how many ranks there are.
        inside: the exchange in which this rank is now, or None.
        turn: a number that changes whenever the rank enters or leaves an exchange.
        comparing: whether the ranks compare each exchange before they enter it.
        compared: the number of the last exchange that they have compared.
        table: numbers that all ranks see, ``COLUMNS`` of each; None where they share no memory.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.inside: Entry | None = None
        self.turn = 0
        self.comparing, self.compared = False, -1
        self.table: Any = None
        self._entries: deque[Entry] = deque(maxlen=KEPT)
        self._count = 0

    @property
    def who(self) -> str:
        """This rank, for the reader."""
        return f"rank {self.rank} of {self.size} ({platform.node()})"

    def note(self, name: str, value: str = "", direction: str = "", size: int = 0) -> Entry:
        """Return a new entry for the next exchange."""
        entry = Entry(self, self._count, name, value, direction, size)
        self._count += 1
        self._entries.append(entry)
        return entry

    def uncompared(self) -> list[Entry]:
        """Return the entries since the last comparison, as far as they are remembered."""
        return [entry for entry in self._entries if entry.number > self.compared]

    def publish(self, place: int) -> None:
        """Write where this rank is into the table that the others see."""
        if self.table is not None:
            last, at = self._entries[-1], COLUMNS * self.rank
            self.table[at], self.table[at + 1], self.table[at + 2] = last.number, last.size, place

    def before(self, entry: Entry) -> str:
        """Return the last exchanges before *entry*, newest first."""
        earlier = [other for other in self._entries if other.number < entry.number]
        shown = [
            str(other) if other.finished else f"{other} (begun)"
            for other in reversed(earlier[-SHOWN:])
        ]
        return "; ".join(shown) or "none"

    def others(self) -> str:
        """Return where the other ranks are, as far as this one sees: a sentence, or nothing."""
        if self.table is None:
            return ""
        ranks_at: dict[str, list[int]] = {}
        for rank in range(self.size):
            if rank != self.rank:
                number, size, place = self.table[COLUMNS * rank : COLUMNS * (rank + 1)]
                where = (
                    f"in no exchange, the last was {number}",
                    f"in exchange {number}" + (f" of {size:,} bytes" if size else ""),
                    f"at the end of the program, the last exchange was {number}",
                )[place]
                ranks_at.setdefault(where, []).append(rank)
        return "".join(f"{_ranks(ranks)} {where}; " for where, ranks in ranks_at.items())


def checksum(entries: list[Entry]) -> int:
    """Return a number for *entries*, their sizes and their order."""
    return zlib.crc32(marks(entries).tobytes())


def marks(entries: list[Entry]) -> npt.NDArray[np.int64]:
    """Return (key, size) of each entry."""
    pairs = [(entry.key, entry.size) for entry in entries]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def first_difference(everyones: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Return the first exchange in which a rank differs from rank 0, and that rank.

    everyones: (ranks, exchanges, 2), the ``marks`` of every rank, filled up with zeros.
    """
    differs = (everyones != everyones[0]).any(axis=2)
    at = int(differs.any(axis=0).argmax())
    return at, int(differs[:, at].argmax())


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} is"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]} are"
