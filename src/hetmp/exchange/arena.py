"""Slots of memory that the ranks of one host share: a gather is then one copy and one meeting.

All ranks take the same slot for the same exchange without a message of its own. At every meeting
(a barrier) each rank leaves word which slots it has no use for any more; from what was left at
the last meeting that is over, and from what was taken since, all ranks choose alike. So memory
is never written to while another rank still reads it, however late that rank lets it go.
"""

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetmp.cluster import Group, SharedMemory

MAX_SLOTS = 1024
"""The most exchanges whose memory is in use at a time."""

MAX_MEETINGS = 3
"""The most meetings under way at a time."""

_DEPTH = 2 * MAX_MEETINGS + 1
"""Meetings whose words are kept: a word is overwritten when every rank has read it."""

_PAGE = 2**12
"""Slots begin and end on pages of so many bytes."""

_SMALLEST = 2**26
"""Bytes without which there is no arena."""

_SPARE = 2**26
"""Bytes that are left free where shared memory lives."""

_HOME = "/dev/shm"


@dataclass(eq=False)
class Slot:
    """A run of the shared bytes, for one exchange.

    Attributes:
        number: where this rank leaves word of it.
        taken: the next meeting when it was taken.
        free: whether this rank has no use for it.
    """

    memory: SharedMemory
    begin: int
    size: int
    number: int
    taken: int
    free: bool = False

    def tensor(self, count: int, dtype: torch.dtype) -> Tensor:
        """*count* elements of it; it is free on this rank when the last tensor on it is gone."""
        array = self.memory.bytes[self.begin : self.begin + count * dtype.itemsize]
        weakref.finalize(array, self._release).atexit = False
        return torch.from_numpy(array).view(dtype)

    def _release(self) -> None:
        self.free = True


class Rendezvous:
    """A barrier under way: behind ``wait()`` all ranks see what each wrote before it."""

    def __init__(self, arena: "Arena", slot: Slot) -> None:
        self._arena, self._slot = arena, slot
        slot.memory.publish()
        self._number = arena.leave_word()
        self._request = arena.group.comm.Ibarrier()

    def wait(self) -> None:
        """Wait for all ranks."""
        self._request.Wait()
        self._slot.memory.publish()
        self._arena.read_word(self._number)


class Arena:
    """The shared memory of one communicator's exchanges; every method but ``of`` is collective.

    One window of half the room there is, of which the system gives only the pages that are written
    to. Slots lie as far in front as they can, so that few pages ever are.
    """

    def __init__(self, group: Group, size: int) -> None:
        self.group = group
        self._memory = group.shared_memory(size)
        words = _DEPTH * group.size * MAX_SLOTS
        self._words: Any = self._memory.bytes[:words].reshape(_DEPTH, group.size, MAX_SLOTS)
        self._first = self._end = _pages(words)
        self._slots: dict[int, Slot] = {}
        self._begun, self._under_way = 0, 0
        self._read = -1
        self._agreed: Sequence[bool] = [False] * MAX_SLOTS

    @classmethod
    def of(cls, group: Group) -> "Arena | None":
        """The arena of the group's communicator; None where its ranks cannot share memory."""
        if not group.on_one_host:
            return None
        if "arena" not in group.kept:
            size = _room(group) // 2 // _PAGE * _PAGE
            group.kept["arena"] = cls(group, size) if size >= _SMALLEST else None
        arena: Arena | None = group.kept["arena"]
        return arena

    @property
    def size(self) -> int:
        """Bytes that exchanges have needed at a time so far."""
        return self._end - self._first

    @property
    def in_use(self) -> int:
        """Bytes that this rank has a use for."""
        return sum(slot.size for slot in self._slots.values() if not slot.free)

    def take(self, size: int) -> Slot | None:
        """A slot of *size* bytes; None if there is none to be had, on all ranks."""
        for slot in list(self._slots.values()):
            if self._agreed[slot.number] and slot.taken <= self._read:
                del self._slots[slot.number]
        if self._under_way == MAX_MEETINGS or len(self._slots) == MAX_SLOTS:
            return None
        size = _pages(max(1, size))
        begin = self._gap(size)
        if begin + size > self._end and not self._grow(begin + size):
            return None
        number = next(n for n in range(MAX_SLOTS) if n not in self._slots)
        slot = Slot(self._memory, begin, size, number, self._begun)
        self._slots[number] = slot
        return slot

    def _gap(self, size: int) -> int:
        """Where the first gap of *size* bytes between the slots begins, or behind the last one."""
        begin = self._first
        for slot in sorted(self._slots.values(), key=lambda slot: slot.begin):
            if slot.begin - begin >= size:
                break
            begin = slot.begin + slot.size
        return begin

    def take_back(self) -> None:
        """Learn now which slots no rank has a use for, without waiting for word.

        Before a forward pass: the last pass's are free and nobody has heard; the first slots
        would lie behind them, and the others behind those.
        """
        slots = list(self._slots.values())
        mine = np.array([slot.free for slot in slots], dtype=np.int8)
        for i in np.flatnonzero(self.group.allgather(mine).all(axis=0)):
            del self._slots[slots[i].number]

    def _grow(self, end: int) -> bool:
        """Use the window up to *end*, if there still is room for it."""
        if end > self._memory.bytes.size or _room(self.group) < end - self._end:
            return False
        # Taken from the system now, not in the middle of an exchange; by each rank its part.
        more, rank, ranks = end - self._end, self.group.rank, self.group.size
        part = slice(self._end + rank * more // ranks, self._end + (rank + 1) * more // ranks)
        self._memory.bytes[part] = 0
        self._memory.publish()
        self.group.control.Barrier()
        self._end = end
        return True

    def meet(self, slot: Slot) -> Rendezvous:
        """Begin to meet: what this rank writes to *slot* is written."""
        return Rendezvous(self, slot)

    def leave_word(self) -> int:
        """Say which slots this rank has no use for; returns the meeting's number."""
        number = self._begun
        mine = self._words[number % _DEPTH, self.group.rank]
        mine[:] = 0
        mine[[slot.number for slot in self._slots.values() if slot.free]] = 1
        self._begun += 1
        self._under_way += 1
        return number

    def read_word(self, number: int) -> None:
        """Learn which slots no rank had a use for at a meeting that is over."""
        self._under_way -= 1
        if number < self._read:  # later ones may be over before it, and their word is newer
            return
        self._agreed = self._words[number % _DEPTH].all(axis=0).tolist()
        self._read = number


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _room(group: Group) -> int:
    """Bytes that can still be shared, as the rank that sees least has it."""
    free = np.iinfo(np.int64).max
    if os.path.isdir(_HOME):
        found = os.statvfs(_HOME)
        free = found.f_bavail * found.f_frsize - _SPARE
    return int(group.allgather(np.array([free], dtype=np.int64)).min())
