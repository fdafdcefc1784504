"""The ranks that share one model's channels: who I am, agreement on errors, root-only output.

The only module that imports ``mpi4py.MPI``, and only when a group is first made, so that
commands for login nodes never start MPI.
"""

import atexit
import os
import sys
import time
import traceback
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from hetmp.errors import HetmpError
from hetmp.pace import Pace

if TYPE_CHECKING:
    from mpi4py import MPI

FAIL_TOGETHER_SECONDS = 3.0
"""How long a rank that fails waits for the others to fail too before it aborts the job."""

PATIENCE_SECONDS = 0.05
"""How often a rank that waits patiently looks whether the others are there."""

_cache_key: int | None = None


class AgreedError(HetmpError):
    """An error that every rank of the group raises at the same point."""


def _mpi() -> Any:
    """``mpi4py.MPI``, with MPI started."""
    started_by_user = "mpi4py.MPI" in sys.modules
    if not started_by_user:
        import mpi4py

        mpi4py.rc.initialize = False
        # Open MPI's UCX component cannot share memory on a host, and says so at every window.
        os.environ.setdefault("OMPI_MCA_osc", "^ucx")
    from mpi4py import MPI

    if not started_by_user:
        _refuse_misfit(MPI.Get_library_version())
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
        atexit.register(_finalize)
    return MPI


def _finalize() -> None:
    from mpi4py import MPI

    if not MPI.Is_finalized():
        MPI.Finalize()


def _refuse_misfit(library: str) -> None:
    """Say what MPICH would abort on without a word of help: a launcher that speaks PMIx only."""
    pmix_only = "PMIX_RANK" in os.environ and "PMI_RANK" not in os.environ
    if library.startswith("MPICH") and pmix_only and "SLURM_PROCID" in os.environ:
        raise HetmpError(
            "srun --mpi=pmix does not fit this MPI library (MPICH): use srun --mpi=pmi2, or an "
            "Open MPI"
        )


class Group:
    """The ranks of one communicator, and the duplicates of it that hetmp talks over.

    Making a group is collective over *comm* (``MPI.COMM_WORLD`` if None). Duplicates are
    cached on the user's communicator, one per purpose, so any number of models costs two.
    Copies of a group, deep ones included, are the group itself.

    Attributes:
        comm: carries the exchanges between layers.
        control: carries agreement and other small messages.
        rank, size: this rank's number, and how many there are.
        on_one_host: whether all ranks can share memory.
        kept: what lives as long as the user's communicator, by purpose.
        pace: a test aid that makes this rank slower.
        rehearsing: whether exchanges move nothing, to measure what is left of a step.
        patient: whether small messages are waited for without burning a core.
    """

    def __init__(self, comm: "MPI.Intracomm | None" = None) -> None:
        mpi = _mpi()
        user = mpi.COMM_WORLD if comm is None else comm
        if user == mpi.COMM_NULL or user.Is_inter():
            raise HetmpError(
                "hetmp needs an intracommunicator that this rank is in, such as MPI.COMM_WORLD"
            )
        self.kept: dict[str, Any] = _kept(user)
        self.comm: MPI.Intracomm = _duplicate(user, self.kept, "exchange")
        self.control: MPI.Intracomm = _duplicate(user, self.kept, "control")
        self.rank: int = user.Get_rank()
        self.size: int = user.Get_size()
        self.on_one_host = _on_one_host(self.control, self.kept)
        self.pace = Pace()
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
        failed = self.allgather(np.array([error is not None], dtype=np.int8)).ravel()
        if not failed.any():
            return
        first = int(failed.argmax())
        text = self.broadcast_text(describe(error) if error else "", root=first)
        raise AgreedError(text if failed.all() else f"rank {first}: {text}") from error

    def allgather(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Every rank's *values* (equal shapes and dtypes), stacked in rank order. Collective."""
        values = np.ascontiguousarray(values)
        gathered = np.empty((self.size, *values.shape), dtype=values.dtype)
        if self.patient:
            self._wait(self.control.Iallgather(values, gathered))
        else:
            self.control.Allgather(values, gathered)
        return gathered

    def broadcast(self, values: npt.NDArray[Any], root: int = 0) -> npt.NDArray[Any]:
        """*root*'s values, written into and returned as *values*. Collective."""
        if self.patient:
            self._wait(self.control.Ibcast(values, root=root))
        else:
            self.control.Bcast(values, root=root)
        return values

    def broadcast_text(self, text: str, root: int = 0) -> str:
        """*root*'s text on every rank. Collective."""
        encoded = np.frombuffer(text.encode(), dtype=np.uint8)
        size = int(self.broadcast(np.array([encoded.size]), root)[0])
        buffer = encoded.copy() if self.rank == root else np.empty(size, dtype=np.uint8)
        return self.broadcast(buffer, root).tobytes().decode()

    def gather_texts(self, text: str) -> list[str]:
        """Every rank's text, in rank order. Collective."""
        return [self.broadcast_text(text, root) for root in range(self.size)]

    def alltoall(
        self, packed: npt.NDArray[np.uint8], outgoing: Sequence[int], incoming: Sequence[int]
    ) -> npt.NDArray[np.uint8]:
        """Send every rank its bytes; the bytes that arrive, in rank order. Collective.

        Args:
            packed: what is sent, one rank's after the other's.
            outgoing, incoming: how many bytes go to and come from each rank.
        """
        arrived = np.empty(sum(incoming), dtype=np.uint8)
        if self.patient:
            self._wait(self.control.Ialltoallv([packed, outgoing], [arrived, incoming]))
        else:
            self.control.Alltoallv([packed, outgoing], [arrived, incoming])
        return arrived

    def behind(self) -> "Group":
        """A group of the same ranks for a thread beside the one that trains. Collective.

        It talks over communicators of its own, and waits without burning a core.

        Raises:
            HetmpError: MPI was started without support for several threads.
        """
        mpi = _mpi()
        if mpi.Query_thread() < mpi.THREAD_MULTIPLE:
            raise HetmpError(
                "MPI was started for one thread at a time, and saving behind the training takes "
                "two: set mpi4py.rc.thread_level = 'multiple' before importing mpi4py.MPI"
            )
        if "behind" not in self.kept:
            self.kept["behind"] = Group(self.control.Dup())
        found: Group = self.kept["behind"]
        found.patient = True
        return found

    def _wait(self, request: "MPI.Request") -> None:
        """Until a request is complete, looking now and then."""
        pause = 1e-5
        while not request.Test():
            time.sleep(pause)
            pause = min(2 * pause, PATIENCE_SECONDS / 50)

    def all_done(self) -> "MPI.Request":
        """Say that this rank is done, and go on; the request is complete when all have."""
        return self.control.Ibarrier()

    def part(self, ranks: Sequence[int]) -> "MPI.Intracomm | None":
        """A communicator of *ranks* alone, in that order; None on the others. Collective."""
        color = 0 if self.rank in ranks else _mpi().UNDEFINED
        key = list(ranks).index(self.rank) if self.rank in ranks else 0
        comm: Any = self.control.Split(color, key)
        return None if comm == _mpi().COMM_NULL else comm

    def meet(self) -> None:
        """Wait for all ranks without burning a core, for minutes or hours. Collective."""
        arrived = self.comm.Ibarrier()
        while not arrived.Test():
            time.sleep(PATIENCE_SECONDS)

    def shared_memory(self, size: int) -> "SharedMemory":
        """*size* bytes that all ranks see. Collective; needs ``on_one_host``."""
        return SharedMemory(self.comm, size)

    def all_fail(self) -> bool:
        """Called where a rank fails: whether all the others do, too, at about the same point."""
        request = self.control.Ibarrier()
        deadline = time.monotonic() + FAIL_TOGETHER_SECONDS
        while not (all_failed := request.Test()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return bool(all_failed)

    def fail(self, error: BaseException) -> NoReturn:
        """End the job after an error that was not agreed on: nonzero exit on all, no hang.

        Where every rank fails at about the same point, rank 0 alone speaks and all exit.
        Where some go on, they will wait in a collective for this one: it speaks and aborts.
        """
        if self.all_fail():
            if self.is_root:
                report(error)
            raise SystemExit(1)
        report(error, prefix=f"rank {self.rank} failed while the others went on: ")
        _mpi().COMM_WORLD.Abort(1)
        raise SystemExit(1)


class LoneGroup(Group):
    """One process without MPI, for commands that run on a login node."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1

    def allgather(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The one rank's *values*, stacked."""
        return np.ascontiguousarray(values)[None]

    def broadcast(self, values: npt.NDArray[Any], root: int = 0) -> npt.NDArray[Any]:
        """The one rank's *values*."""
        return values


class RehearsalGroup(Group):
    """One rank of a group whose other ranks are not there: it computes its share and meets no one.

    For measuring what a rank would have to do. Nothing that is computed with it is right.
    """

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(_mpi().COMM_SELF)
        self.rank, self.size = rank, size
        self.on_one_host, self.rehearsing = False, True
        self.pace = Pace()

    def allgather(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """This rank's *values* in the place of everyone's."""
        return np.stack([np.ascontiguousarray(values)] * self.size)

    def broadcast(self, values: npt.NDArray[Any], root: int = 0) -> npt.NDArray[Any]:
        """This rank's own *values*."""
        return values


class SharedMemory:
    """Memory that the ranks of one host share, an MPI-3 shared window held by its first rank.

    What a rank wrote is seen by the others after ``publish()``, a barrier, and ``publish()`` there.

    Attributes:
        bytes: the memory, the same on every rank.
    """

    def __init__(self, comm: "MPI.Intracomm", size: int) -> None:
        mpi = _mpi()
        self._window = mpi.Win.Allocate_shared(size if comm.rank == 0 else 0, 1, comm=comm)
        self._window.Lock_all()  # an epoch for Sync, never left
        memory, _ = self._window.Shared_query(0)
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(memory, dtype=np.uint8)[:size]

    def publish(self) -> None:
        """Order this rank's reads and writes before and after this call."""
        self._window.Sync()


def describe(error: BaseException) -> str:
    """An error in words; its type too where it is not one that hetmp worded."""
    if isinstance(error, HetmpError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def report(error: BaseException, prefix: str = "") -> None:
    """Print *error* on stderr, with the traceback where it is not one that hetmp worded."""
    if not isinstance(error, HetmpError):
        traceback.print_exception(error)
    sys.stderr.write(f"hetmp: error: {prefix}{describe(error)}\n")
    sys.stderr.flush()


def _kept(comm: "MPI.Intracomm") -> dict[str, Any]:
    """What hetmp keeps on a user's communicator."""
    global _cache_key
    mpi = _mpi()
    if mpi.Query_thread() < mpi.THREAD_SERIALIZED:
        raise HetmpError(
            "MPI was started without thread support, and backward passes on a GPU call it from "
            "another thread: set mpi4py.rc.thread_level = 'multiple' before importing mpi4py.MPI"
        )
    if _cache_key is None:
        _cache_key = mpi.Comm.Create_keyval()
    kept: Any = comm.Get_attr(_cache_key)
    if kept is None:
        kept = {}
        comm.Set_attr(_cache_key, kept)
    found: dict[str, Any] = kept
    return found


def _duplicate(comm: "MPI.Intracomm", kept: dict[str, Any], purpose: str) -> "MPI.Intracomm":
    if purpose not in kept:
        kept[purpose] = comm.Dup()
    duplicate: MPI.Intracomm = kept[purpose]
    return duplicate


def _on_one_host(comm: "MPI.Intracomm", kept: dict[str, Any]) -> bool:
    if "on one host" not in kept:
        local = comm.Split_type(_mpi().COMM_TYPE_SHARED)
        alone = np.array([local.Get_size() < comm.Get_size()], dtype=np.int8)
        comm.Allreduce(_mpi().IN_PLACE, alone, op=_mpi().MAX)
        kept["on one host"] = not alone[0]
        local.Free()
    return bool(kept["on one host"])


def launched() -> tuple[int, int] | None:
    """(rank, size) as the launcher's environment tells it, without MPI; None if not launched."""
    for rank_name, size_name in (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI's mpirun
        ("PMI_RANK", "PMI_SIZE"),  # MPICH's mpirun, srun --mpi=pmi2
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
        ("SLURM_PROCID", "SLURM_NTASKS"),
    ):
        rank, size = os.environ.get(rank_name), os.environ.get(size_name)
        if rank is not None and size is not None and rank.isdigit() and size.isdigit():
            return int(rank), int(size)
    return None


def speaks_first() -> bool:
    """Whether this process is the one of many that speaks of what all of them see.

    The launcher knows before MPI starts, and where MPI fell apart into lonely worlds.
    """
    told = launched()
    if told is not None:
        return told[0] == 0
    return "mpi4py.MPI" not in sys.modules or _mpi().COMM_WORLD.Get_rank() == 0


def check_world(group: Group) -> None:
    """Refuse a job whose launcher started P lonely worlds of one rank each.

    Raises:
        HetmpError: the launcher says that it started more ranks than this world has.
    """
    told = launched()
    if told is None or group.size > 1 or told[1] <= 1:
        return
    raise HetmpError(
        f"the launcher started {told[1]} processes, but MPI sees {told[1]} separate worlds of 1 "
        f"rank: it does not fit this MPI library ({mpi_library()}). With srun use --mpi=pmix for "
        "Open MPI or --mpi=pmi2 for MPICH; with mpirun use the one that belongs to the library "
        "(.venv/bin/mpirun in a checkout)"
    )


def mpi_library() -> str:
    """The MPI library in use, for example ``MPICH 5.0.2``."""
    name, version = _mpi().get_vendor()
    return f"{name} {'.'.join(str(part) for part in version)}"


def local_sharing(group: Group, what: str) -> tuple[int, int]:
    """(number, count) of this rank among the ranks on this host that name the same *what*.

    Collective. For ranks that share devices or cores: *what* names the set they were given.
    """
    local = group.control.Split_type(_mpi().COMM_TYPE_SHARED)
    marks = np.empty(local.Get_size(), dtype=np.int64)
    local.Allgather(np.array([zlib.crc32(what.encode())], dtype=np.int64), marks)
    same = marks == marks[local.Get_rank()]
    number = int(same[: local.Get_rank()].sum())
    local.Free()
    return number, int(same.sum())
