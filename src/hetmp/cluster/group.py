"""The ranks that share one model's channels: agreement on errors, root-only output."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from hetmp.cluster.mpi import completed, mpi
from hetmp.cluster.recorder import (
    ALIKE,
    KEPT,
    Entry,
    ExchangeRecorder,
    checksum,
    first_difference,
    marks,
)
from hetmp.cluster.shared_memory import SharedMemory
from hetmp.cluster.slowdown import Slowdown
from hetmp.cluster.watchdog import watch
from hetmp.core.error_report import report
from hetmp.core.errors import BAD_INPUT, FailedError, HetmpError, describe, exit_code, grace_seconds

if TYPE_CHECKING:
    from mpi4py import MPI

PATIENCE_SECONDS = 0.05
"""Seconds between the checks of a rank that waits for a long time."""

_TEXT_BYTES = 256
"""Bytes of a text about an exchange that ranks send each other."""

_cache_key: int | None = None


class AgreedError(HetmpError):
    """An error that every rank of the group raises at the same point."""


class AgreedFailure(AgreedError, FailedError):
    """An agreed error that is not the input's fault."""


class Group:
    """The ranks of one communicator, and the duplicates of it that hetmp communicates over.

    Making a group is collective over *comm* (``MPI.COMM_WORLD`` if None). Duplicates are
    cached on the user's communicator, one per purpose, so any number of models costs three.
    Copies of a group, deep ones included, are the group itself.

    Attributes:
        comm: carries the exchanges between layers.
        control: carries agreement and other small messages.
        recorder: the last exchanges of this rank.
        rank: this rank's number.
        size: how many ranks there are.
        on_one_host: whether all ranks can share memory.
        cache: objects that live as long as the user's communicator, by purpose.
        slowdown: a test aid that makes this rank slower.
        rehearsing: whether exchanges move nothing now: see ``rehearsed``.
        patient: whether to wait for small messages without burning a core.
    """

    def __init__(self, comm: "MPI.Intracomm | None" = None) -> None:
        library = mpi()
        user = library.COMM_WORLD if comm is None else comm
        if user == library.COMM_NULL or user.Is_inter():
            raise HetmpError(
                "hetmp needs an intracommunicator that this rank is in, such as MPI.COMM_WORLD"
            )
        self.cache: dict[str, Any] = _cache_of(user)
        self.comm: MPI.Intracomm = _duplicate(user, self.cache, "exchange")
        self.control: MPI.Intracomm = _duplicate(user, self.cache, "control")
        # Of its own, so that a comparison can meet nothing but a comparison.
        self._order: MPI.Intracomm = _duplicate(user, self.cache, "order")
        self.rank: int = user.Get_rank()
        self.size: int = user.Get_size()
        self.recorder = _recorder(self.rank, self.size, self.cache)
        self.on_one_host = _on_one_host(self.control, self.cache)
        self.slowdown = Slowdown()
        self.rehearsing = False
        self.patient = False

    def __copy__(self) -> "Group":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Group":
        return self

    def __repr__(self) -> str:
        return f"Group(rank={self.rank}, size={self.size})"

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0, the one that speaks for the group."""
        return self.rank == 0

    @contextmanager
    def rehearsed(self) -> Iterator[None]:
        """Inside, exchanges move nothing: what they give has the right shape and no meaning."""
        self.rehearsing = True
        try:
            yield
        finally:
            self.rehearsing = False

    def say(self, text: str) -> None:
        """Print *text* from rank 0."""
        if self.is_root:
            print(text, flush=True)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Agree on errors: if the body raised on any rank, every rank raises ``AgreedError``.

        Collective. The body must hold no collective call of its own, or must raise before it.
        The message is the first failing rank's, with its number unless all failed.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        code = exit_code(error) if error else 0
        failed = self.allgather(np.array([code], dtype=np.int8)).ravel()
        if not failed.any():
            return
        first = int(failed.nonzero()[0][0])
        text = self.broadcast_text(describe(error) if error else "", root=first)
        kind = AgreedError if failed[first] == BAD_INPUT else AgreedFailure
        raise kind(text if failed.all() else f"rank {first}: {text}") from error

    def record(self, name: str, value: str = "", direction: str = "", size: int = 0) -> Entry:
        """Return the entry of an exchange that this rank is about to enter.

        While each exchange is compared it is collective, and ranks that would meet in different
        ones are refused. The arguments are those of ``Entry``.

        Raises:
            HetmpError: see ``compare_exchanges``.
        """
        entry = self.recorder.note(name, value, direction, size)
        if self.recorder.comparing:
            with entry:
                self._compare(entry)
        return entry

    def compare_exchanges(self, *, each: bool) -> None:
        """Compare over the ranks which exchanges they have entered so far. Collective.

        Args:
            each: whether to compare every later one, too, before it is entered.

        Raises:
            HetmpError: on every rank, naming the first that differs and what two ranks entered.
        """
        if self.recorder.size > 1:
            entry = self.recorder.note("comparing the exchanges so far")
            with entry:
                self._compare(entry)
            self.recorder.comparing = each

    def compare_each(self) -> None:
        """Compare every exchange from now on before it is entered, until ``compare_exchanges``.

        Call it on all ranks, before the same exchange.
        """
        self.recorder.comparing = self.recorder.size > 1

    def _compare(self, entry: Entry) -> None:
        entries = self.recorder.uncompared()
        self.recorder.compared = entry.number
        sums = self._compared(np.array([entry.number, checksum(entries)], dtype=np.int64))
        if (sums == sums[0]).all():
            return
        own = np.zeros((KEPT, 2), dtype=np.int64)
        own[: len(entries)] = marks(entries)
        at, rank = first_difference(self._compared(own))
        text = str(entries[at]) if at < len(entries) else "none"
        packed = text.encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES)
        texts = self._compared(np.frombuffer(packed, dtype=np.uint8))
        first, other = (texts[i].tobytes().decode(errors="replace").strip() for i in (0, rank))
        raise AgreedError(
            f"rank {rank} enters exchange {other}; rank 0 enters exchange {first}; {ALIKE}"
        )

    def _compared(self, own: npt.NDArray[Any]) -> npt.NDArray[Any]:
        everyones = np.empty((self.size, *own.shape), dtype=own.dtype)
        self._order.Allgather(own, everyones)
        return everyones

    def allgather(self, values: npt.NDArray[Any], value: str = "") -> npt.NDArray[Any]:
        """Gather every rank's *values* (equal shapes and dtypes), in rank order. Collective.

        Args:
            value: a name of them for the reader.
        """
        values = np.ascontiguousarray(values)
        gathered = np.empty((self.size, *values.shape), dtype=values.dtype)
        if self.patient:
            self._wait(self.control.Iallgather(values, gathered))
        else:
            with self.record("Allgather", value, size=gathered.nbytes):
                self.control.Allgather(values, gathered)
        return gathered

    def start_allgather(
        self, own: npt.NDArray[np.uint8], into: npt.NDArray[np.uint8], counts: Sequence[int]
    ) -> "Begun":
        """Begin to gather every rank's bytes in rank order; neither array may change. Collective.

        Args:
            own: this rank's bytes.
            into: all ranks' bytes, once the request is complete.
            counts: how many bytes each rank gives.

        Returns:
            What to wait for.
        """
        with self.record("Allgatherv", size=into.nbytes) as entry:
            request = self.control.Iallgatherv(own, [into, counts])
        return Begun(entry, request)

    def broadcast(self, values: npt.NDArray[Any], root: int = 0) -> npt.NDArray[Any]:
        """Copy *root*'s values into *values* on every rank, and return them. Collective."""
        if self.patient:
            self._wait(self.control.Ibcast(values, root=root))
        else:
            with self.record("Bcast", size=values.nbytes):
                self.control.Bcast(values, root=root)
        return values

    def broadcast_text(self, text: str, root: int = 0) -> str:
        """Return *root*'s text on every rank. Collective."""
        encoded = np.frombuffer(text.encode(), dtype=np.uint8)
        size = int(self.broadcast(np.array([encoded.size]), root)[0])
        buffer = encoded.copy() if self.rank == root else np.empty(size, dtype=np.uint8)
        return self.broadcast(buffer, root).tobytes().decode()

    def gather_texts(self, text: str) -> list[str]:
        """Return every rank's text, in rank order. Collective."""
        return [self.broadcast_text(text, root) for root in range(self.size)]

    def alltoall(
        self, packed: npt.NDArray[np.uint8], outgoing: Sequence[int], incoming: Sequence[int]
    ) -> npt.NDArray[np.uint8]:
        """Send every rank its bytes; return those that arrive, in rank order. Collective.

        Args:
            packed: the bytes to send, in rank order.
            outgoing, incoming: how many bytes go to and come from each rank.
        """
        arrived = np.empty(sum(incoming), dtype=np.uint8)
        if self.patient:
            self._wait(self.control.Ialltoallv([packed, outgoing], [arrived, incoming]))
        else:
            with self.record("Alltoallv"):
                self.control.Alltoallv([packed, outgoing], [arrived, incoming])
        return arrived

    def behind(self) -> "Group":
        """Return a group of the same ranks for a thread beside the training. Collective.

        It uses communicators of its own, and waits without burning a core.

        Raises:
            HetmpError: MPI was started without support for several threads.
        """
        library = mpi()
        if library.Query_thread() < library.THREAD_MULTIPLE:
            raise HetmpError(
                "MPI was started for one thread at a time, and saving behind the training needs "
                "two: set mpi4py.rc.thread_level = 'multiple' before importing mpi4py.MPI"
            )
        if "behind" not in self.cache:
            self.cache["behind"] = Group(self.control.Dup())
        group: Group = self.cache["behind"]
        group.patient = True
        return group

    def _wait(self, request: "MPI.Request") -> None:
        """Wait for a request, testing it now and then."""
        pause = 1e-5
        while not request.Test():
            time.sleep(pause)
            pause = min(2 * pause, PATIENCE_SECONDS / 50)

    def all_done(self) -> "MPI.Request":
        """Announce that this rank is done; the request returned completes when all are."""
        return self.control.Ibarrier()

    def part(self, ranks: Sequence[int]) -> "MPI.Intracomm | None":
        """Return a communicator of *ranks* alone, in that order; None on the others. Collective.

        Made once for the same ranks: what is kept on it, such as shared memory, is used again.
        """
        purpose = f"part {tuple(ranks)}"
        if purpose not in self.cache:
            color = 0 if self.rank in ranks else mpi().UNDEFINED
            key = list(ranks).index(self.rank) if self.rank in ranks else 0
            comm: Any = self.control.Split(color, key)
            self.cache[purpose] = None if comm == mpi().COMM_NULL else comm
        part: MPI.Intracomm | None = self.cache[purpose]
        return part

    def meet(self) -> None:
        """Wait for all ranks without burning a core, for minutes or hours. Collective."""
        arrived = self.comm.Ibarrier()
        while not arrived.Test():
            time.sleep(PATIENCE_SECONDS)

    def shared_memory(self, size: int) -> "SharedMemory":
        """Allocate *size* bytes that all ranks see. Collective; needs ``on_one_host``."""
        return SharedMemory(self.comm, size)

    def all_fail(self) -> bool:
        """Return whether all other ranks fail, too, at about the same point. Called on failure."""
        return completed(self.control.Ibarrier(), grace_seconds())

    @contextmanager
    def failing(self) -> Iterator[None]:
        """End the job after an error in the block that the ranks did not agree on."""
        try:
            yield
        except AgreedError:
            raise
        except Exception as error:
            self.fail(error)

    def fail(self, error: BaseException) -> NoReturn:
        """End the job after an error that was not agreed on: nonzero exit on all, no hang.

        Where every rank fails at about the same point, rank 0 alone speaks and all exit.
        Where some go on, they will wait in a collective for this one: it speaks and aborts.
        """
        if self.all_fail():
            if self.is_root:
                report(error)
            raise SystemExit(exit_code(error))
        report(error, prefix=f"rank {self.rank} failed while the others went on: ")
        time.sleep(grace_seconds() / 3)  # for the launcher to pass on what this rank said
        mpi().COMM_WORLD.Abort(1)
        raise SystemExit(1)


class Begun:
    """A small message under way."""

    def __init__(self, entry: Entry, request: "MPI.Request") -> None:
        self._entry, self._request = entry, request
        entry.finished = False

    def wait(self) -> None:
        """Wait until it has arrived."""
        with self._entry:
            self._request.Wait()


def _recorder(rank: int, size: int, cache: dict[str, Any]) -> ExchangeRecorder:
    """Return the communicator's recorder: all its groups enter exchanges in one order."""
    if "recorder" not in cache:
        cache["recorder"] = ExchangeRecorder(rank, size)
        if size > 1:
            watch(cache["recorder"])
    recorder: ExchangeRecorder = cache["recorder"]
    return recorder


def _cache_of(comm: "MPI.Intracomm") -> dict[str, Any]:
    """Return the dict that hetmp stores on a user's communicator."""
    global _cache_key
    library = mpi()
    if library.Query_thread() < library.THREAD_SERIALIZED:
        raise HetmpError(
            "MPI was started without thread support, and backward passes on a GPU call it from "
            "another thread: set mpi4py.rc.thread_level = 'multiple' before importing mpi4py.MPI"
        )
    if _cache_key is None:
        _cache_key = library.Comm.Create_keyval()
    stored: Any = comm.Get_attr(_cache_key)
    if stored is None:
        stored = {}
        comm.Set_attr(_cache_key, stored)
    cache: dict[str, Any] = stored
    return cache


def _duplicate(comm: "MPI.Intracomm", cache: dict[str, Any], purpose: str) -> "MPI.Intracomm":
    if purpose not in cache:
        cache[purpose] = comm.Dup()
    duplicate: MPI.Intracomm = cache[purpose]
    return duplicate


def _on_one_host(comm: "MPI.Intracomm", cache: dict[str, Any]) -> bool:
    if "on one host" not in cache:
        local = comm.Split_type(mpi().COMM_TYPE_SHARED)
        alone = np.array([local.Get_size() < comm.Get_size()], dtype=np.int8)
        comm.Allreduce(mpi().IN_PLACE, alone, op=mpi().MAX)
        cache["on one host"] = not alone[0]
        local.Free()
    return bool(cache["on one host"])
