"""What every test gets, and how tests run on several ranks as one.

Under ``mpirun ... python -m mpi4py -m pytest --with-mpi -m mpi`` each rank runs its own pytest.
This file makes them one run: the ranks meet after each test and exchange what became of it, so
that a test which fails on any rank fails on all, rank 0 shows every rank's failure once, and a
rank that failed alone does not leave the others waiting in a collective until the job's limit.
"""

import contextlib
import faulthandler
import functools
import json
import os
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

from helpers.cluster_jobs import SlurmCluster

HANG = float(os.environ.get("HETMP_TEST_HANG", "300"))
"""Seconds that one test may take; then every thread's stack is shown and the job aborted."""

GRACE = float(os.environ.get("HETMP_TEST_GRACE", "60"))
"""Seconds that a rank whose test failed waits for the others to finish theirs."""

SIZES = (1, 2, 3, 4, 5)
"""The numbers of ranks that tests run on."""

MAIN_SIZE = 3
"""Every test runs on so many: the fewest on which a wrong adjoint cannot hide."""

FEW = 3
"""Whole runs from data to files are tested on so many ranks at most: what differs with the number
of ranks, the parts of them are tested for on more."""

SAMPLED = "HETMP_TEST_SAMPLED" in os.environ
"""Whether a test runs on MAIN_SIZE ranks or more, and now and then on fewer too, unless it asks for
every size."""

EXAMPLES = int(os.environ.get("HETMP_TEST_EXAMPLES", "100"))
"""How many examples a test of arithmetic draws, unless it says so itself."""

PART = os.environ.get("HETMP_TEST_PART", "1/1")
"""Which part of the test files this run has, of how many: 1/2 and 2/2 are all of them."""

LOGS = Path(__file__).resolve().parents[1] / "build" / "mpi-logs"
"""Where the output of ranks above 0 goes."""

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here or in a subprocess


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "mpi(min_size=1): runs on several ranks, with --with-mpi")
    config.addinivalue_line(
        "markers", f"few_ranks: takes long and learns little from more than {FEW} ranks"
    )
    config.addinivalue_line(
        "markers", "every_size: about the number of ranks, so never sampled: see SAMPLED"
    )
    config.addinivalue_line(
        "markers", "thorough: asked too rarely for every change: not where tests are sampled"
    )
    config.addinivalue_line("markers", "writer: depends on how checkpoints are written")
    config.addinivalue_line("markers", "slurm: runs jobs on a real Slurm cluster")
    shown = os.dup(2)  # nothing is captured now: this is the real standard error
    ranks = None
    if config.getoption("--with-mpi", default=False):
        from mpi4py import MPI

        ranks = Ranks(MPI.COMM_WORLD, shown)
        config.pluginmanager.register(Lockstep(config, ranks), "hetmp-lockstep")
    config.pluginmanager.register(HangGuard(shown, ranks), "hetmp-hang-guard")
    _settle_hypothesis(same_on_all_ranks=ranks is not None)


def _settle_hypothesis(same_on_all_ranks: bool) -> None:
    """No deadlines on shared cores; under MPI every rank must draw the same examples."""
    with contextlib.suppress(ImportError):
        from hypothesis import settings

        options: dict[str, Any] = {"deadline": None, "max_examples": EXAMPLES}
        if same_on_all_ranks:
            options |= {"derandomize": True, "database": None}
        settings.register_profile("hetmp", **options)
        settings.load_profile("hetmp")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the files of other parts, and those without tests for ranks in a run of these."""
    part, parts = map(int, PART.split("/"))
    if config.getoption("markexpr") == "mpi" and collection_path.match("test_*.py"):
        return ".mpi" not in collection_path.read_text(encoding="utf-8") or None
    if parts > 1 and collection_path.match("test_*.py"):
        return _part_of(parts)[collection_path.name] != part or None
    return None


@functools.cache
def _part_of(parts: int) -> dict[str, int]:
    """Divide the files among parts: the file that takes longest goes to the part that has least.

    ``scripts/test_times.py --record`` writes what they take; a file that is not there counts 1 s.
    """
    here = Path(__file__).parent
    seconds = json.loads((here / "seconds.json").read_text(encoding="utf-8"))
    files = sorted(path.name for path in here.glob("test_*.py"))
    sums = dict.fromkeys(range(1, parts + 1), 0.0)
    part_of_file = {}
    for file in sorted(files, key=lambda file: -seconds.get(file, 1)):
        shortest = min(sums, key=lambda part: sums[part])
        part_of_file[file] = shortest
        sums[shortest] += seconds.get(file, 1)
    return part_of_file


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is asked in ``make test-all`` only."""
    left_out = [item for item in items if SAMPLED and item.get_closest_marker("thorough")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def cluster() -> Generator[SlurmCluster, None, None]:
    """A Slurm cluster of fast1, mid1 and slow1, up once for all tests; skips where none can be."""
    started = SlurmCluster.start()
    if isinstance(started, str):
        pytest.skip(f"no Slurm cluster: {started}")
    yield started
    started.stop()


def pytest_collection_finish() -> None:
    if "torch" in sys.modules:  # the tests that need it have imported it by now
        sys.modules["torch"].set_num_threads(1)


# --- the ranks, and how they meet ---------------------------------------------------------------


@dataclass(frozen=True)
class Note:
    """What a rank says when it arrives at a meeting."""

    about: str
    failed: bool = False
    text: str = ""


@dataclass
class Ranks:
    """The ranks of this run on a communicator of their own.

    ``meet`` sends a note to every other rank and takes theirs, without blocking in MPI: unlike
    a barrier it knows who is missing, and can give up.
    """

    world: Any
    shown: int
    comm: Any = field(init=False)
    rank: int = field(init=False)
    size: int = field(init=False)
    waiting: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.comm = self.world.Dup()
        self.rank, self.size = self.comm.rank, self.comm.size

    def meet(self, note: Note, late: Callable[[list[int], bool, float], str | None]) -> list[Note]:
        """Every rank's note, in rank order.

        ``late(missing, any_failed, seconds)`` is asked from time to time while ranks are
        missing; the text it returns ends the job.
        """
        notes: dict[int, Note] = {self.rank: note}
        sends = [self.comm.isend(note, dest) for dest in range(self.size) if dest != self.rank]
        start, pause = time.monotonic(), 1e-4
        self.waiting = True
        while sends or len(notes) < self.size:
            # One at a time from each rank: a quick one may be at its next meeting already.
            for source in set(range(self.size)) - notes.keys():
                message = self.comm.improbe(source)
                if message is not None:
                    notes[source] = message.recv()
            sends = [send for send in sends if not send.test()[0]]
            missing = sorted(set(range(self.size)) - notes.keys())
            any_failed = any(known.failed for known in notes.values())
            text = late(missing, any_failed, time.monotonic() - start)
            if text is not None and missing:
                self.abort(text)
            time.sleep(pause)
            pause = min(pause * 1.5, 0.02)
        self.waiting = False
        if len({known.about for known in notes.values()}) > 1:
            at = "".join(f"\n  rank {rank}: {notes[rank].about}" for rank in range(self.size))
            self.abort(f"the ranks are at different tests:{at}" if self.rank == 0 else "")
        return [notes[rank] for rank in range(self.size)]

    def show(self, text: str) -> None:
        """Print on the real standard error, past all capturing, in one piece."""
        if text:
            os.write(self.shown, f"\n{text.rstrip()}\n".encode())

    def abort(self, text: str, code: int = 1) -> NoReturn:
        """Show *text* and end the whole job, after the time that other ranks need for theirs."""
        self.show(text)
        time.sleep(2)
        # Should MPI itself be what hangs, the exit of one rank ends the job as well.
        threading.Timer(5, os._exit, (code,)).start()
        self.world.Abort(code)
        os._exit(code)


def some(ranks: Sequence[int]) -> str:
    """*ranks* in words.

    >>> some([2]), some([0, 1, 3])
    ('rank 2', 'ranks 0, 1, 3')
    """
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def runs_on(item: pytest.Item, size: int) -> bool:
    """Whether a test runs on so many ranks.

    Sampled, one in three cases of a table has another number than MAIN_SIZE, and they take turns
    with it. One that has more ranks is not asked on MAIN_SIZE: it proves as much.
    """
    mpi = item.get_closest_marker("mpi")
    fewest = mpi.kwargs.get("min_size", 1) if mpi else 1
    most = FEW if item.get_closest_marker("few_ranks") else max(size, *SIZES)
    if not SAMPLED or item.get_closest_marker("every_size"):
        return fewest <= size <= most
    others = [number for number in SIZES if fewest <= number <= most and number != MAIN_SIZE]
    case = getattr(item, "callspec", None)
    # Tests of one case each, and the first cases of short tables, are spread by their names.
    name = zlib.crc32(item.nodeid.partition("[")[0].encode())
    turn, rest = (name, 0) if case is None else divmod(sum(case.indices.values()) + name, 3)
    other = others[turn % len(others)] if rest == 0 else MAIN_SIZE
    return size == other or (size == MAIN_SIZE and other < MAIN_SIZE)


# --- one run out of many ------------------------------------------------------------------------


class Lockstep:
    """The pytest plugin that makes the ranks' runs one."""

    def __init__(self, config: pytest.Config, ranks: Ranks) -> None:
        self.ranks = ranks
        self.config = config
        self.failures: list[str] = []

    def pytest_report_header(self) -> str:
        from mpi4py import MPI

        library = " ".join(MPI.Get_library_version().splitlines()[0].split(",")[0].split())
        others = f"; the others write to {LOGS}" if self.ranks.size > 1 else ""
        return f"mpi: rank {self.ranks.rank} of {self.ranks.size}, {library}{others}"

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        for plugin in session.config.pluginmanager.get_plugins():
            if type(plugin).__name__ == "MPIPlugin":
                plugin._is_testing_mpi = False  # our header says what its long summary would

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        left_out = [item for item in items if not runs_on(item, self.ranks.size)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if runs_on(item, self.ranks.size)]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failures.append(report.longreprtext)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> Generator[None, None, None]:
        """All ranks have collected the same tests, or none runs any."""
        yield
        if self.ranks.size == 1:
            return
        names = "\n".join(item.nodeid for item in session.items)
        failed = session.testsfailed > 0
        text = "\n".join(self.failures) if failed else names
        self.failures.clear()
        notes = self.ranks.meet(Note("collection", failed, text), self._late("collecting tests"))
        if any(note.failed for note in notes):
            session.testsfailed = max(session.testsfailed, 1)  # pytest then stops, on every rank
            if not failed:
                rank = next(rank for rank, note in enumerate(notes) if note.failed)
                self._write(f"collecting tests failed on rank {rank}:\n{notes[rank].text}")
        elif any(note.text != notes[0].text for note in notes):
            rank, theirs = next((r, n.text) for r, n in enumerate(notes) if n.text != notes[0].text)
            differing = set(theirs.split("\n")) ^ set(notes[0].text.split("\n"))
            which = ", ".join(sorted(differing)) or "the same in another order"
            pytest.exit(f"rank {rank} collected other tests than rank 0: {which}", 1)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """The ranks meet twice a test: when it has run (or could not), and when it is torn down."""
        report = yield
        if report.failed:
            captured = "".join(f"\n--- {name} ---\n{text}" for name, text in report.sections)
            self.failures.append(report.longreprtext + captured)
        if call.when == "setup" and report.passed:
            return report  # the test itself comes first
        if self.ranks.size > 1:
            note = Note(item.nodeid, bool(self.failures), "\n".join(self.failures))
            notes = self.ranks.meet(note, self._late(item.nodeid, note))
            self._merge(report, notes)
        self.failures.clear()
        return report

    def _merge(self, report: pytest.TestReport, notes: list[Note]) -> None:
        """Make *report* a failure if any rank's is one, with the others' failures on rank 0."""
        others = [r for r, note in enumerate(notes) if note.failed and r != self.ranks.rank]
        if not others:
            return
        ranks_by_text: dict[str, list[int]] = {}
        for rank in others:
            ranks_by_text.setdefault(notes[rank].text, []).append(rank)
        if not report.failed:
            report.outcome = "failed"
            lines = notes[others[0]].text.splitlines()
            why = next((" ".join(line[1:].split()) for line in lines if line.startswith("E ")), "")
            report.longrepr = f"only {some(others)}: {why}"
            report.__dict__.pop("wasxfail", None)
        if self.ranks.rank == 0:
            for text, ranks in ranks_by_text.items():
                same = text == notes[0].text
                report.sections.append((some(ranks), "failed likewise" if same else text))

    def _late(
        self, where: str, mine: Note | None = None
    ) -> Callable[[list[int], bool, float], str | None]:
        """What to do about missing ranks: nothing for a while, then end the job."""

        def late(missing: list[int], any_failed: bool, seconds: float) -> str | None:
            if mine and mine.failed and seconds > GRACE:
                return (
                    f"rank {self.ranks.rank} failed in {where}:\n\n{mine.text}\n\n"
                    f"rank {self.ranks.rank} waited {seconds:.0f} s for {some(missing)}, still in "
                    "that test, and now ends the job: were they waiting for it in a collective?"
                )
            if seconds > (GRACE + 20 if any_failed else HANG + 20):
                return (
                    f"rank {self.ranks.rank} waited {seconds:.0f} s for {some(missing)} "
                    f"in {where}, and now ends the job"
                )
            return None

        return late

    def _write(self, line: str) -> None:
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(line)

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Ranks above 0 write to a file of their own; rank 0 alone writes the times."""
        for plugin in config.pluginmanager.get_plugins():
            if type(plugin).__name__ == "LogXML" and self.ranks.rank > 0:
                plugin.logfile = os.devnull
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if self.ranks.rank == 0 or reporter is None:
            return
        log = LOGS / f"{self.ranks.size}-ranks" / f"rank-{self.ranks.rank}.log"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            reporter._tw._file = log.open("w", encoding="utf-8", buffering=1)
        except OSError:
            reporter._tw._file = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """No rank leaves before all have said what they have to say: see `python -m mpi4py`."""
        sys.stdout.flush()
        sys.stderr.flush()
        self.ranks.meet(Note("end"), self._late("ending the run", Note("end")))


class HangGuard:
    """Ends the job when one test takes longer than ``HANG``, with the stack of every thread."""

    def __init__(self, shown: int, ranks: Ranks | None) -> None:
        self.shown = shown
        self.ranks = ranks
        self.who = f"rank {ranks.rank}: " if ranks and ranks.size > 1 else ""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        timer = threading.Timer(HANG, self._end, (item.nodeid,))
        timer.daemon = True
        timer.start()
        # Needs no interpreter lock: for a hang in C code that keeps it.
        faulthandler.dump_traceback_later(2 * HANG + 60, exit=True, file=self.shown)
        try:
            return (yield)
        finally:
            timer.cancel()
            faulthandler.cancel_dump_traceback_later()

    def _end(self, test: str) -> None:
        if self.ranks and self.ranks.waiting:
            return  # another rank hangs, and says where
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file)
            file.seek(0)
            stacks = file.read().split("\n\n")
        machinery = ("/_pytest/", "/pluggy/", "/mpi4py/run.py", "/mpi4py/__main__.py", "<frozen")
        lines = [
            line
            for stack in stacks
            if not stack.startswith("Current thread")  # this one
            for line in stack.splitlines()
            if not any(part in line for part in machinery)
        ]
        text = "\n".join([f"{self.who}{test} has run for {HANG:.0f} s, the limit:", *lines, ""])
        if self.ranks:
            self.ranks.abort(text)
        os.write(self.shown, f"\n{text}".encode())
        os._exit(1)
