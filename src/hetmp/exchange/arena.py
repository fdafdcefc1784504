"""Slots of memory that the ranks of one host share: a gather is then one copy and one meeting.

All ranks take the same slot for the same exchange without a message of its own. At every meeting
(a barrier) each rank leaves word which slots it has no use for any more; from what was left at
the last meeting that is over, and from what was taken since, all ranks choose alike. So a slot
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

from hetmp.comm import Group, SharedMemory

MAX_SLOTS = 4096
MAX_MEETINGS = 3
"""The most meetings under way at a time."""

_DEPTH = 2 * MAX_MEETINGS + 1
"""Meetings whose words are kept: a word is overwritten when every rank has read it."""

_SMALLEST = 2**12
"""Bytes of the smallest slot."""

_SPARE = 2**26
"""Bytes that are left free where shared memory lives."""

_HOME = "/dev/shm"


@dataclass(eq=False)
class Slot:
    """Some shared bytes, for one exchange at a time.

    Attributes:
        free: whether this rank has no use for it.
        taken: the meeting of the exchange that took it last.
    """

    number: int
    memory: SharedMemory
    taken: int
    free: bool = False

    def tensor(self, count: int, dtype: torch.dtype) -> Tensor:
        """*count* elements of it; it is free on this rank when the last tensor on it is gone."""
        array = self.memory.bytes[: count * dtype.itemsize]
        weakref.finalize(array, self._release).atexit = False
        return torch.from_numpy(array).view(dtype)

    def _release(self) -> None:
        self.free = True


class Meeting:
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
    """The slots of one communicator; every method but ``of`` is collective."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self._slots: list[Slot] = []
        self._word_memory = group.shared_memory(_DEPTH * group.size * MAX_SLOTS)
        shape = _DEPTH, group.size, MAX_SLOTS
        self._words: Any = self._word_memory.bytes.reshape(shape)
        self._begun, self._under_way = 0, 0
        self._read = -1
        self._agreed: Sequence[bool] = ()

    @classmethod
    def of(cls, group: Group) -> "Arena | None":
        """The arena of the group's communicator; None where its ranks cannot share memory."""
        if not group.on_one_host:
            return None
        if "arena" not in group.kept:
            fits = _room(group) > _DEPTH * group.size * MAX_SLOTS
            group.kept["arena"] = cls(group) if fits else None
        arena: Arena | None = group.kept["arena"]
        return arena

    def take(self, size: int) -> Slot | None:
        """A slot of *size* bytes or more; None if there is none to be had, on all ranks."""
        if self._under_way == MAX_MEETINGS:
            return None
        fitting = [
            slot
            for slot, free in zip(self._slots, self._agreed, strict=False)
            if free and slot.taken <= self._read and slot.memory.bytes.size >= size
        ]
        slot = min(fitting, key=lambda slot: slot.memory.bytes.size, default=None)
        if slot is None:
            size = max(size, _SMALLEST)
            if len(self._slots) == MAX_SLOTS or _room(self.group) < size:
                return None
            slot = Slot(len(self._slots), self.group.shared_memory(size), self._begun)
            self._slots.append(slot)
        slot.taken, slot.free = self._begun, False
        return slot

    def meet(self, slot: Slot) -> Meeting:
        """Begin to meet: what this rank writes to *slot* is written."""
        return Meeting(self, slot)

    def leave_word(self) -> int:
        """Say which slots this rank has no use for; returns the meeting's number."""
        number = self._begun
        mine = self._words[number % _DEPTH, self.group.rank]
        mine[: len(self._slots)] = [slot.free for slot in self._slots]
        mine[len(self._slots) :] = 0
        self._begun += 1
        self._under_way += 1
        return number

    def read_word(self, number: int) -> None:
        """Learn which slots no rank had a use for at a meeting that is over."""
        self._under_way -= 1
        if number < self._read:  # later ones may be over before it, and their word is newer
            return
        self._agreed = self._words[number % _DEPTH, :, : len(self._slots)].all(axis=0).tolist()
        self._read = number


def _room(group: Group) -> int:
    """Bytes that can still be shared, as the rank that sees least has it."""
    free = np.iinfo(np.int64).max
    if os.path.isdir(_HOME):
        found = os.statvfs(_HOME)
        free = found.f_bavail * found.f_frsize - _SPARE
    return int(group.allgather(np.array([free], dtype=np.int64)).min())
