"""Slots of memory that the ranks of one host share: a gather is then one copy and one meeting.

The window that the ranks share; a word is MAX_SLOTS flags, of a byte each:

    | words: _DEPTH x ranks x MAX_SLOTS | places | slot | slot | gap | slot | not used yet ... |
    0                                            _first                     _end

The places say in which exchange each rank is: see ``cluster/recorder.py``.

One exchange on one rank, with meeting number n:

    take()     choose a slot from the words of the last meeting read: the same on all ranks,
               without a message
    write      this rank's part of the slot
    meet()     write word n, a flag for every slot that this rank no longer uses, into
               words[n % _DEPTH, rank]; begin barrier n
    ...        other work; at most MAX_MEETINGS meetings are under way
    wait()     barrier n is over: every rank's part of the slot, and every rank's word n, can be
               read; a slot is agreed to be free if it is flagged in the words n of all ranks
    read       the slot; when its last tensor is gone, the slot is free on this rank, which
               word n + 1 or a later one says

    rank 0   take A, write, meet 5 .. wait 5, read, drop A   meet 6 (A free) .. wait 6
    rank 1   take A, write, meet 5 ..... wait 5, read        meet 6 (A used) .. wait 6, drop A
    both     meet 7 (A free on both) .. wait 7: the next take() may choose the bytes of A again

Invariant: the bytes of a slot are taken again only after a meeting (or a ``take_back()``) that
began after the slot was taken and in which every rank flagged it; so no rank writes what another
may still read.
"""

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hetmp.cluster import Group, SharedMemory
from hetmp.cluster.recorder import COLUMNS

MAX_SLOTS = 1024
"""The most exchanges whose memory is in use at a time."""

FREE_BYTES = MAX_SLOTS // 8
"""The bytes in which every slot has a bit."""

MAX_MEETINGS = 3
"""The most meetings under way at a time."""

_DEPTH = 2 * MAX_MEETINGS + 1
"""Meetings whose words are kept: a word is overwritten only after every rank has read it."""

_PAGE = 2**12
"""The bytes of a page; slots begin and end on pages."""

_SMALLEST = 2**26
"""The least bytes of an arena; with less room there is none."""

_SPARE = 2**26
"""Bytes that are left free in the file system of shared memory."""

_HOME = "/dev/shm"


@dataclass(eq=False)
class Slot:
    """A run of the shared bytes, for one exchange.

    Attributes:
        number: the index of its flag in a word.
        first_meeting: the number of the first meeting begun after it was taken.
        free: whether this rank no longer uses it.
    """

    memory: SharedMemory
    begin: int
    size: int
    number: int
    first_meeting: int
    free: bool = False

    def tensor(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return *count* elements on the slot, which is free when the last such tensor is gone."""
        array = self.memory.bytes[self.begin : self.begin + count * dtype.itemsize]
        weakref.finalize(array, self._release).atexit = False
        return torch.from_numpy(array).view(dtype)

    def _release(self) -> None:
        self.free = True


class Rendezvous:
    """A barrier under way: after ``wait()`` all ranks see what each wrote before it."""

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

    The window is half of the shared memory that is left; the system provides only the pages that
    are written to. Slots lie as far in front as they can, so that few pages ever are.
    """

    def __init__(self, group: Group, size: int) -> None:
        self.group = group
        self._memory = group.shared_memory(size)
        words = _DEPTH * group.size * MAX_SLOTS
        self._words: Any = self._memory.bytes[:words].reshape(_DEPTH, group.size, MAX_SLOTS)
        places = COLUMNS * group.size * 8
        self._first = self._end = _pages(words + places)
        table: Any = self._memory.bytes[words : words + places]
        group.recorder.table = memoryview(table).cast("q")
        self._slots: dict[int, Slot] = {}
        self._begun, self._under_way = 0, 0
        self._read = -1
        self._agreed: Sequence[bool] = [False] * MAX_SLOTS

    @classmethod
    def of(cls, group: Group) -> "Arena | None":
        """Return the arena of the group's communicator; None where ranks cannot share memory."""
        if not group.on_one_host:
            return None
        if "arena" not in group.cache:
            size = _room(group) // 2 // _PAGE * _PAGE
            group.cache["arena"] = cls(group, size) if size >= _SMALLEST else None
        arena: Arena | None = group.cache["arena"]
        return arena

    @property
    def size(self) -> int:
        """The most bytes that exchanges have needed at once so far."""
        return self._end - self._first

    @property
    def in_use(self) -> int:
        """The bytes of the slots that this rank still uses."""
        return sum(slot.size for slot in self._slots.values() if not slot.free)

    def take(self, size: int) -> Slot | None:
        """Return a slot of *size* bytes; None, on all ranks, where there is no room for one."""
        for slot in list(self._slots.values()):
            if self._agreed[slot.number] and slot.first_meeting <= self._read:
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
        """Return where the first gap of *size* bytes between slots begins, or the last one ends."""
        begin = self._first
        for slot in sorted(self._slots.values(), key=lambda slot: slot.begin):
            if slot.begin - begin >= size:
                break
            begin = slot.begin + slot.size
        return begin

    def free_slots(self) -> bytes:
        """Return a bit for every slot, in ``FREE_BYTES``: whether this rank no longer uses it."""
        flags = 0
        for slot in self._slots.values():
            if slot.free:
                flags |= 1 << slot.number
        return flags.to_bytes(FREE_BYTES, "little")

    def take_back(self, everyones: npt.NDArray[Any]) -> None:
        """Free the slots that no rank uses, as all ranks have just told each other.

        For the start of a forward pass: the slots of the last pass are free, but no meeting has
        said so yet; without this, new slots would lie behind them.

        Args:
            everyones: the ``free_slots()`` of every rank, as integers: (ranks, ...).
        """
        common = np.bitwise_and.reduce(everyones, axis=0)
        flags = int.from_bytes(common.tobytes(), "little")
        for number in list(self._slots):
            if flags >> number & 1:
                del self._slots[number]

    def _grow(self, end: int) -> bool:
        """Use the window up to *end*, if there still is room for it."""
        if end > self._memory.bytes.size or _room(self.group) < end - self._end:
            return False
        # Each rank touches its part of the new pages now, not in the middle of an exchange.
        more, rank, ranks = end - self._end, self.group.rank, self.group.size
        part = slice(self._end + rank * more // ranks, self._end + (rank + 1) * more // ranks)
        self._memory.bytes[part] = 0
        self._memory.publish()
        self.group.control.Barrier()
        self._end = end
        return True

    def meet(self, slot: Slot) -> Rendezvous:
        """Begin a rendezvous: this rank has finished writing to *slot*."""
        return Rendezvous(self, slot)

    def leave_word(self) -> int:
        """Publish which slots this rank no longer uses; return the meeting's number."""
        number = self._begun
        mine = self._words[number % _DEPTH, self.group.rank]
        mine[:] = 0
        mine[[slot.number for slot in self._slots.values() if slot.free]] = 1
        self._begun += 1
        self._under_way += 1
        return number

    def read_word(self, number: int) -> None:
        """Read which slots no rank used at a meeting that is over."""
        self._under_way -= 1
        if number < self._read:  # later ones may be over before it, and their word is newer
            return
        self._agreed = self._words[number % _DEPTH].all(axis=0).tolist()
        self._read = number


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _room(group: Group) -> int:
    """Return the bytes that can still be shared, the least that any rank sees."""
    free = np.iinfo(np.int64).max
    if os.path.isdir(_HOME):
        filesystem = os.statvfs(_HOME)
        free = filesystem.f_bavail * filesystem.f_frsize - _SPARE
    return int(group.allgather(np.array([free], dtype=np.int64)).min())
