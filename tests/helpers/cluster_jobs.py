"""Jobs on the tests' own Slurm cluster: what tests/cluster/cluster.sh starts."""

import fcntl
import os
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

SCRIPT = Path(__file__).resolve().parents[1] / "cluster" / "cluster.sh"

FOLDER = Path(os.environ.get("HETMP_CLUSTER_DIR", "/tmp/hetmp-cluster-tests"))
"""The cluster's own folder: a cluster that somebody has up for trials is another one."""

ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
}
"""The states that a job does not leave. A job that is requeued goes to PENDING instead."""

SHORT_ADDRESSES = {"MPIR_CVAR_CH4_NETMOD": "ofi"}
"""For MPICH: docs/clusters.md says why ranks may fail to meet by Slurm's pmi2 without it."""


def control(
    *words: str,
    nodes: str | None = None,
    timeout: float = 120,
    cwd: str | Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Call cluster.sh, whose output goes through pipes that a daemon must not inherit."""
    environment = SHORT_ADDRESSES | os.environ | {"HETMP_CLUSTER_DIR": str(FOLDER)}
    if nodes is not None:
        environment["HETMP_CLUSTER_NODES"] = nodes
    return subprocess.run(
        [SCRIPT, *words],
        capture_output=True,
        cwd=cwd,
        encoding="utf-8",
        env=environment,
        errors="replace",
        stdin=subprocess.DEVNULL,
        timeout=timeout,
    )


def unavailable() -> str | None:
    """Why no cluster can run here, or None if one can."""
    done = control("check")
    return None if done.returncode == 0 else done.stderr.strip().removeprefix("cluster.sh: ")


class SlurmCluster:
    """A running cluster; ``start`` makes it, ``stop`` takes it down."""

    def __init__(self, lock: IO[str], limited: bool) -> None:
        self._lock = lock
        self.limited = limited
        """Whether this system can make nodes as fast as they say."""

    @classmethod
    def start(cls, nodes: str | None = None) -> "SlurmCluster | str":
        """A fresh cluster of *nodes*, cluster.sh's own choice if None, or why there can be none.

        A lock that its holder's death sets free keeps other runs of the tests away meanwhile; what
        such a death left running is taken down here.
        """
        reason = unavailable()
        if reason is not None:
            return reason
        lock = Path(f"{FOLDER}.lock").open("w")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return f"another run of the tests has the cluster in {FOLDER}"
        control("down")
        done = control("up", nodes=nodes)
        if done.returncode != 0:
            control("down")
            lock.close()
            raise RuntimeError(f"the Slurm cluster does not start: {done.stderr}")
        started = cls(lock, "no CPU quotas" not in done.stdout)
        if nodes is None:
            started.let_run_free()
        return started

    @contextmanager
    def unequal_nodes(self) -> Iterator[None]:
        """Have the nodes of the default cluster as fast as they say, for tests of that alone.

        Everything takes longer there, the start of each program as well.
        """
        self._set_speeds(80, 40, 25)
        try:
            yield
        finally:
            self.let_run_free()

    def let_run_free(self) -> None:
        """Have every node of the default cluster as fast as the machine."""
        self._set_speeds("max", "max", "max")

    def _set_speeds(self, *speeds: int | str) -> None:
        if self.limited:
            pairs = zip(("fast1", "mid1", "slow1"), map(str, speeds), strict=True)
            done = control("speed", *(word for pair in pairs for word in pair))
            assert done.returncode == 0, done.stderr

    def stop(self) -> None:
        """End everything that runs on it."""
        done = control("down")
        self._lock.close()
        assert done.returncode == 0, done.stderr

    def run(
        self,
        *command: str | Path | int,
        check: bool = True,
        timeout: float = 60,
        cwd: str | Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run *command* on the login node, which has this machine's file systems.

        With *check* a failure is an AssertionError that shows what was printed.
        """
        words = [str(word) for word in command]
        try:
            done = control("run", *words, timeout=timeout, cwd=cwd)
        except subprocess.TimeoutExpired as late:
            printed = "".join(_text(part) for part in (late.stdout, late.stderr))
            raise AssertionError(
                f"{' '.join(words)} took more than {timeout:g} s\n{printed}\n{self.queue()}"
            ) from None
        if check:
            shown = f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
            assert done.returncode == 0, shown
        return done

    def submit(
        self,
        script: str | Path,
        *arguments: str | Path | int,
        options: Sequence[str | Path] = (),
        cwd: str | Path | None = None,
    ) -> int:
        """Give sbatch *script*, and return the job's number."""
        done = self.run("sbatch", "--parsable", *options, script, *arguments, cwd=cwd)
        return int(done.stdout.split(";")[0])

    def show(self, job: int) -> dict[str, str]:
        """What ``scontrol show job`` says of *job*; of a heterogeneous one, of its first part.

        Slurm knows a job for five minutes after its end.
        """
        done = self.run("scontrol", "--oneliner", "show", "job", job)
        words = done.stdout.splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job: int) -> str:
        """The job's state, in one word: PENDING, RUNNING, COMPLETED, ..."""
        return self.show(job)["JobState"]

    def wait(
        self, job: int, until: Collection[str] = frozenset({"COMPLETED"}), timeout: float = 60
    ) -> str:
        """Wait for *job* to be in one of the states *until*, and return that state.

        An AssertionError that shows the queue and the end of the job's log says that it took more
        than *timeout* seconds, or that the job ended otherwise.
        """
        deadline = time.monotonic() + timeout
        while True:
            state = self.state(job)
            if state in until:
                return state
            late = time.monotonic() > deadline
            if late or state in ENDED:
                after = f" after {timeout:g} s" if late else ""
                raise AssertionError(
                    f"job {job} is {state}{after}, not {' or '.join(sorted(until))}\n"
                    f"{self.queue()}\n{self.log(job)}"
                )
            time.sleep(0.2)

    def log(self, job: int, lines: int = 40) -> str:
        """The last *lines* of the job's output, under its path."""
        path = Path(self.show(job).get("StdOut", ""))
        if not path.is_file():
            return f"{path}: not there"
        text = path.read_text(encoding="utf-8", errors="replace")
        return "\n".join([f"--- {path} ---", *text.splitlines()[-lines:]])

    def queue(self) -> str:
        """The jobs and the nodes, as Slurm shows them."""
        command = "squeue; sinfo --Node --format='%8N %10t %E'"
        return control("run", "sh", "-c", command, timeout=20).stdout

    def set_node(self, name: str, state: str) -> None:
        """Set a node's state: ``down`` ends what runs there, ``resume`` brings it back."""
        self.run("scontrol", "update", f"nodename={name}", f"state={state}", "reason=test")


def _text(printed: bytes | str | None) -> str:
    return printed.decode(errors="replace") if isinstance(printed, bytes) else printed or ""
