"""The scripts in jobs/, submitted to a real Slurm: tests/cluster/README.md."""

import json
import shlex
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.cluster_jobs import SlurmCluster

pytestmark = pytest.mark.slurm

CHECKOUT = Path(__file__).resolve().parents[1]
HETMP = CHECKOUT / ".venv" / "bin" / "hetmp"

DIGITS = ("--model", "digits", "--data", "digits")
SHORT = (*DIGITS, "--batch-size", "400", "--epochs", "1")  # 4 steps
EXACT = (*DIGITS, "--dtype", "float64", "--batch-size", "100", "--epochs", "2")  # 30 steps
ONE_EACH = ["--partition=fast", ":", "--partition=mid", ":", "--partition=slow"]


class Folder:
    """A checkout as a user has one on a cluster: jobs/ and an environment."""

    def __init__(self, path: Path, cluster: SlurmCluster) -> None:
        self.path, self.cluster = path, cluster
        shutil.copytree(CHECKOUT / "jobs", path / "jobs")
        (path / ".venv").symlink_to(CHECKOUT / ".venv")

    def use_mpi(self, kind: str) -> None:
        """Have jobs start their ranks with ``srun --mpi=kind``, as a site can in jobs/env.sh."""
        with (self.path / "jobs" / "env.sh").open("a") as site:
            site.write(f"export HETMP_SRUN_MPI={kind}\n")

    def slow_down(self, script: str, factors: str) -> None:
        """Have a job's first start train so many times slower: what is to end it must not be late.

        What is queued again goes on at full speed.
        """
        file = self.path / "jobs" / f"{script}.sbatch"
        last = '--stop-signal USR2 "${arguments[@]}"'
        assert last in file.read_text()
        slow = f'$([ -n "${{SLURM_RESTART_COUNT:-}}" ] || echo --slowdown {factors})'
        file.write_text(file.read_text().replace(last, f"{last} {slow}"))

    def submit(self, script: str, *arguments: str, options: Sequence[str] = ()) -> int:
        """Submit jobs/*script*.sbatch with *arguments* of hetmp's."""
        return self.cluster.submit(
            f"jobs/{script}.sbatch", *arguments, options=options, cwd=self.path
        )

    def done(self, job: int, timeout: float = 150) -> str:
        """Wait until a job is completed; its log."""
        self.cluster.wait(job, timeout=timeout)
        return self.log(job)

    def log(self, job: int) -> str:
        return next(self.path.glob(f"*-{job}.out")).read_text()

    def run_of(self, job: int) -> Path:
        return self.path / "runs" / f"hetmp-train-{job}"

    def records(self, job: int, kind: str) -> list[dict[str, Any]]:
        return records(self.run_of(job), kind)

    def wait_for(self, what: Callable[[], bool], job: int, timeout: float = 120) -> None:
        """Until *what* is so."""
        deadline = time.monotonic() + timeout
        while not what():
            assert time.monotonic() < deadline, self.cluster.queue() + self.cluster.log(job)
            time.sleep(0.2)

    def trained(self, job: int, steps: int) -> None:
        """Wait until a job's run has taken *steps* steps."""
        self.wait_for(lambda: len(self.records(job, "step")) >= steps, job)

    def hetmp(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The program on the login node."""
        return self.cluster.run(HETMP, *words, cwd=self.path, check=check, timeout=250)


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return [record for record in found if record["kind"] == kind]


@pytest.fixture(scope="session")
def fitting_mpi(cluster: SlurmCluster) -> str:
    """Return the kind of MPI that fits: each job would ask, and the answer is always the same."""
    return cluster.run(HETMP, "doctor", "--srun-mpi", timeout=250).stdout.strip()


@pytest.fixture
def folder(tmp_path: Path, cluster: SlurmCluster, fitting_mpi: str) -> Iterator[Folder]:
    made = Folder(tmp_path, cluster)
    made.use_mpi(fitting_mpi)
    yield made
    # All, for hetmp submit has jobs of its own there.
    cluster.run("sh", "-c", "squeue --noheader --format=%A | xargs -r scancel", check=False)
    for name in ("fast1", "mid1", "slow1"):
        cluster.run("scontrol", "update", f"nodename={name}", "state=resume", check=False)
    deadline = time.monotonic() + 60
    while cluster.run("squeue", "--noheader").stdout.strip() or "down" in cluster.queue():
        assert time.monotonic() < deadline, cluster.queue()
        time.sleep(0.5)


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of the EXACT run, uninterrupted on one rank."""
    run = tmp_path_factory.mktemp("uninterrupted")
    words = ["train", *EXACT, "--out", str(run)]
    subprocess.run([HETMP, *words], check=True, capture_output=True, timeout=200)
    return [record["loss"] for record in records(run, "step")]


# --- each template --------------------------------------------------------------------------------


def test_train_takes_the_nodes_that_it_gets(folder: Folder) -> None:
    folder.use_mpi("auto")  # the job finds out itself
    job = folder.submit("train", *SHORT, "--weights", "3,2,1", options=["--nodes=1-3"])
    log = folder.done(job)
    assert "3 ranks with" in log
    assert "wrote config.toml, metrics.jsonl, plan.json and model.h5" in log
    [run] = folder.records(job, "run")
    assert [place["host"] for place in run["placement"]] == ["fast1", "mid1", "slow1"]
    assert [place["kind"] for place in run["placement"]] == ["fast", "mid", "slow"]
    for host in ("fast1", "mid1", "slow1"):
        assert host in log
    # What it wrote is evaluated by the job for that.
    log = folder.done(folder.submit("evaluate", f"runs/hetmp-train-{job}"))
    [end] = folder.records(job, "end")
    assert f"{100 * end['accuracy']:.2f} % test accuracy" in log


def test_a_heterogeneous_job_is_one_world_over_gpus_and_processors(folder: Folder) -> None:
    job = folder.submit("train_hetero", *SHORT, "--weights", "3,2,1", options=ONE_EACH)
    log = folder.done(job)
    [run] = folder.records(job, "run")
    assert [place["host"] for place in run["placement"]] == ["fast1", "mid1", "slow1"]
    # A processor's component is not shown the GPU of the node that the job's script runs on.
    assert [place["unused_gpus"] for place in run["placement"]] == [1, 1, 0]
    assert "ranks 0, 1 were given GPUs that torch" in log


def test_nodes_are_profiled_once_and_planned_for_in_every_job(folder: Folder) -> None:
    work = ("--batch-size", "400", "--seconds", "3")
    for kind in ("fast", "mid"):
        folder.done(folder.submit("profile", "digits", *work, options=[f"--partition={kind}"]))
    profiles = folder.path / "runs" / "profiles"
    assert sorted(path.parent.name for path in profiles.glob("*/*/*.json")) == ["fast", "mid"]
    job = folder.submit("train", *SHORT, options=["--nodelist=fast1,mid1", "--nodes=2"])
    log = folder.done(job)
    assert "measuring the ranks" not in log
    assert "planned:" in log
    # A kind that nobody measured is measured now, and known from then on.
    job = folder.submit(
        "train", *SHORT, "--profile-seconds", "3", options=["--nodelist=slow1,mid1", "--nodes=2"]
    )
    assert "measuring the ranks" in folder.done(job)
    kept = sorted(path.parent.name for path in profiles.glob("*/*/*.json"))
    assert kept == ["fast", "mid", "slow"]


def test_measured_speeds_follow_the_quotas_and_are_worth_it(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    if not folder.cluster.limited:
        pytest.skip("no CPU quotas on this system")
    work = ("--model", "paper-cifar", "--data", "synthetic", "--samples", "256", "--steps", "4")
    options = [word for kind in ("fast", "mid", "slow")
               for word in (":", f"--partition={kind}", "--cpus-per-task=1")][1:]  # fmt: skip
    seconds = {}
    for shares in ("equal", "auto"):
        with folder.cluster.unequal_nodes():
            job = folder.submit(
                "train_hetero", *work, "--weights", shares, "--profile-seconds", "8",
                options=options,
            )  # fmt: skip
            folder.done(job, timeout=250)
        steps = [sum(part[0] for part in step["seconds"].values())
                 for step in folder.records(job, "step")]  # fmt: skip
        seconds[shares] = statistics.median(steps)
    with capsys.disabled():
        ratio = seconds["equal"] / seconds["auto"]
        print(f" [planned {ratio:.2f} times as fast as equal weights] ", end="")
    kept = {
        path.parent.name: json.loads(path.read_text())["devices"][0]["works"]
        for path in (folder.path / "runs" / "profiles").glob("*/*/*.json")
    }
    assert _speed(kept["mid"], kept["fast"]) == pytest.approx(40 / 80, rel=0.25)
    assert _speed(kept["slow"], kept["fast"]) == pytest.approx(25 / 80, rel=0.25)


def _speed(works: list[dict[str, Any]], others: list[dict[str, Any]]) -> float:
    """How fast one device is beside another: the median over what both were measured to do."""
    ratios = []
    for own, other in zip(works, others, strict=True):
        assert own["work"] == other["work"]
        for count in set(own["counts"]) & set(other["counts"]) - {0}:
            mine, theirs = (
                work["forward"][at] + work["backward"][at] + work["parameters"][at]
                for work, at in ((own, own["counts"].index(count)),
                                 (other, other["counts"].index(count)))
            )  # fmt: skip
            ratios.append(theirs / mine)
    return statistics.median(ratios)


# --- the time is up, a node fails, a user cancels -------------------------------------------------


def test_a_run_that_was_not_done_in_time_goes_on_by_itself(
    folder: Folder, curve: list[float]
) -> None:
    """By Slurm's own signal before the limit of a minute, which it may send at once.

    The run lasts longer than that minute until it is queued again.
    """
    folder.slow_down("train", "250,250")
    job = folder.submit(
        "train", *EXACT, "--weights", "2,1",
        options=["--nodes=2", "--nodelist=fast1,mid1", "--time=1", "--signal=USR2@30"],
    )  # fmt: skip
    log = folder.path / f"hetmp-train-{job}.out"
    folder.wait_for(lambda: log.exists() and "queued again" in log.read_text(), job)
    folder.cluster.run("scontrol", "update", f"jobid={job}", "timelimit=30")
    log = folder.done(job, timeout=150)
    assert "stopped after step" in log
    assert "queued again" in log
    assert "resumed from" in log
    assert folder.cluster.show(job)["Restarts"] != "0"
    assert [record["loss"] for record in folder.records(job, "step")] == pytest.approx(
        curve, rel=1e-9
    )


def test_it_is_queued_again_so_often_and_no_more(folder: Folder) -> None:
    script = folder.path / "jobs" / "train.sbatch"
    script.write_text(script.read_text().replace("max_restarts=10", "max_restarts=0"))
    job = folder.submit("train", *EXACT, "--slowdown", "40", options=["--nodes=1"])
    folder.trained(job, 2)
    folder.cluster.run("scancel", "--signal=USR2", job)
    folder.cluster.wait(job, until={"FAILED"}, timeout=60)
    assert "not queued again: this was restart 0 of 0" in folder.log(job)


def test_a_run_that_cannot_go_on_is_not_queued_again(folder: Folder) -> None:
    """Though the last thing that its records tell is that it was stopped in time."""
    run = folder.path / "runs" / "before"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"kind": "stopped", "steps": 7, "loss": 1.0}\n')
    wrong = ("--weights", "2,1")
    job = folder.submit(
        "train", *SHORT, *wrong, options=["--nodes=1", "--export=ALL,HETMP_RUN=runs/before"]
    )
    folder.cluster.wait(job, until={"FAILED"}, timeout=60)
    assert "queued again" not in folder.log(job)


def test_a_run_goes_on_with_the_nodes_that_are_left(folder: Folder, curve: list[float]) -> None:
    folder.slow_down("train", "10,10,10")
    job = folder.submit(
        "train", *EXACT, "--weights", "equal", "--checkpoint-every", "2",
        options=["--nodes=1-3"],
    )  # fmt: skip
    folder.trained(job, 5)
    folder.cluster.set_node("slow1", "down")
    log = folder.done(job)
    assert "resumed from" in log
    assert [run["ranks"] for run in folder.records(job, "run")] == [3, 2]
    assert [record["loss"] for record in folder.records(job, "step")] == pytest.approx(
        curve, rel=1e-9
    )


def test_a_cancelled_run_leaves_a_sound_checkpoint(folder: Folder) -> None:
    job = folder.submit(
        "train", *EXACT, "--weights", "2,1", "--slowdown", "40,40", "--checkpoint-every", "1000",
        options=["--nodes=2", "--nodelist=fast1,mid1"],
    )  # fmt: skip
    folder.trained(job, 3)
    folder.cluster.run("scancel", job)
    folder.cluster.wait(job, until={"CANCELLED"}, timeout=60)
    latest = folder.run_of(job) / "checkpoints" / "latest.h5"
    folder.wait_for(latest.exists, job, 30)
    assert "sound" in folder.hetmp("inspect", "--verify", str(latest)).stdout
    assert folder.records(job, "stopped")
    assert "queued again" not in folder.log(job)


def test_a_heterogeneous_job_that_lost_a_node_says_how_to_go_on(
    folder: Folder, curve: list[float]
) -> None:
    folder.slow_down("train_hetero", "10,10,10")
    job = folder.submit(
        "train_hetero", *EXACT, "--weights", "equal", "--checkpoint-every", "2",
        options=ONE_EACH,
    )  # fmt: skip
    folder.trained(job, 5)
    folder.cluster.set_node("slow1", "down")
    log = folder.path / f"hetmp-train-{job}.out"
    folder.wait_for(lambda: "hetmp submit train_hetero" in log.read_text(), job, 60)
    folder.wait_for(lambda: not folder.cluster.run("squeue", "--noheader").stdout.strip(), job, 60)
    lines = log.read_text().splitlines()
    assert any(line.startswith("lost slow1.") for line in lines)
    [command] = [line for line in lines if line.startswith("hetmp submit train_hetero")]
    words = shlex.split(command)
    assert words[:2] == ["hetmp", "submit"]
    assert "slow" not in command
    said = folder.hetmp(*words[1:]).stdout
    again = int(said.split()[2].rstrip(";"))
    assert "resumed from" in folder.done(again)
    assert [record["loss"] for record in folder.records(job, "step")] == pytest.approx(
        curve, rel=1e-9
    )


# --- what goes wrong at the start -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pmix", "pmi2", "none"])
def test_the_wrong_kind_of_mpi_is_named(folder: Folder, fitting_mpi: str, kind: str) -> None:
    if kind == fitting_mpi:
        pytest.skip(f"{kind} is the right one for this MPI library")
    folder.use_mpi(kind)
    job = folder.submit("train", *SHORT, options=["--nodes=2"])
    folder.cluster.wait(job, until={"FAILED"}, timeout=90)
    log = folder.log(job)
    assert f"--mpi={fitting_mpi}" in log
    assert log.count("hetmp: error:") == 1


def test_ranks_of_a_node_are_neighbours(folder: Folder) -> None:
    """Dealt out in turns, they are brought together, and each keeps its own weight."""
    job = folder.submit(
        "train", *SHORT, "--weights", "4,3,2,1",
        options=["--nodes=2", "--nodelist=fast1,mid1", "--ntasks-per-node=2", "--cpus-per-task=1",
                 "--distribution=cyclic"],
    )  # fmt: skip
    folder.done(job)
    [run] = folder.records(job, "run")
    assert [place["host"] for place in run["placement"]] == ["fast1", "fast1", "mid1", "mid1"]
    shares = next(layer["counts"] for layer in run["plan"]["layers"])
    assert shares[0] > shares[2] > shares[1] > shares[3]


# --- hetmp submit and hetmp doctor ----------------------------------------------------------------


def test_submit_follows_a_job_to_its_end(folder: Folder) -> None:
    job_file = folder.path / "job.toml"
    job_file.write_text(
        'template = "train"\nname = "short"\ntime = "5"\n'
        'arguments = ["--model", "digits", "--data", "digits", "--batch-size", "400"]\n'
        '[[components]]\nnodes = 2\npartition = "all"\n'
    )
    done = folder.hetmp(
        "submit", "--config", "job.toml", "--cpus-per-task", "1", "--follow",
        "--", *SHORT, "--weights", "2,1",
    )  # fmt: skip
    assert "submitted job" in done.stdout
    assert "runs on" in done.stdout
    assert "epoch   1  step     4" in done.stdout
    assert "completed" in done.stdout


def test_submit_shows_why_a_followed_job_failed(folder: Folder) -> None:
    done = folder.hetmp("submit", "train", "--modle", "digits", check=False)
    assert done.returncode == 2
    done = folder.hetmp("submit", "train", "--", "--modle", "digits", check=False)
    assert done.returncode == 2
    assert "submitted" not in done.stdout
    assert "--model" in done.stderr
    words = ["--model", "digit", "--data", "digits"]
    done = folder.hetmp("submit", "train", "--follow", "--", *words, check=False)
    assert done.returncode == 2
    assert "submitted" not in done.stdout
    assert "unknown model 'digit': did you mean 'digits'?" in done.stderr
    words[1] = "my_nets:build"  # who knows which modules the nodes have
    done = folder.hetmp("submit", "train", "--follow", "--", *words, check=False)
    assert done.returncode == 1
    assert "there is no module 'my_nets'" in done.stdout
    done = folder.hetmp("submit", "train", "--partition", "nowhere", check=False)
    assert done.returncode == 2
    assert "nvalid partition" in done.stderr


def test_doctor_looks_at_the_ranks_that_srun_starts(folder: Folder, fitting_mpi: str) -> None:
    done = folder.cluster.run(
        "srun", f"--mpi={fitting_mpi}", "--nodes=2", "--nodelist=fast1,mid1", HETMP, "doctor",
        cwd=folder.path, timeout=120,
    )  # fmt: skip
    assert "one of 2 ranks" in done.stdout
    assert f"use srun --mpi={fitting_mpi}" in done.stdout
    lonely = folder.cluster.run(
        "srun", "--mpi=none", "--nodes=2", "--nodelist=fast1,mid1", HETMP, "doctor",
        cwd=folder.path, timeout=120, check=False,
    )  # fmt: skip
    assert lonely.returncode == 1
    assert "2 separate worlds of 1 rank" in " ".join(lonely.stdout.split())
