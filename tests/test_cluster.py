"""The tests' own cluster is what the tests of jobs take it for: see tests/cluster/README.md."""

import os
import re
import sys
import time
from pathlib import Path

import pytest

from helpers.cluster_jobs import SlurmCluster, control

pytestmark = pytest.mark.slurm

# How many percent of a core the kernel let this process have, for a second: 50 quota periods.
MEASURE = """
import os, time
start, used = time.monotonic(), time.process_time()
while time.monotonic() - start < 1:
    sum(range(1000))
share = (time.process_time() - used) / (time.monotonic() - start)
print(os.uname().nodename, round(100 * share))
"""


def batch(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["#!/bin/bash", *lines, ""]), encoding="utf-8")
    return path


def test_a_step_over_three_nodes_sees_three_host_names(cluster: SlurmCluster) -> None:
    done = cluster.run("srun", "--nodes=3", "sh", "-c", "echo $(hostname) $HOME $(ls -A /dev/shm)")
    home = os.environ["HOME"]
    assert sorted(done.stdout.splitlines()) == [f"fast1 {home}", f"mid1 {home}", f"slow1 {home}"]


def test_nodes_run_as_fast_as_their_quotas(cluster: SlurmCluster) -> None:
    if not cluster.limited:
        pytest.skip("no CPU quotas on this system")
    speed: dict[str, int] = {}
    with cluster.unequal_nodes():
        for node in ("fast1", "mid1", "slow1"):  # one by one: the machine may have one core
            done = cluster.run("srun", f"--nodelist={node}", sys.executable, "-c", MEASURE)
            name, percent = done.stdout.split()
            speed[name] = int(percent)
    assert speed["fast1"] > speed["mid1"] > speed["slow1"]
    assert 1.3 < speed["fast1"] / speed["mid1"] < 3, speed
    assert 1.1 < speed["mid1"] / speed["slow1"] < 2.4, speed


@pytest.mark.parametrize("plugin", ["none", "pmi2"])
def test_a_heterogeneous_job_runs_one_step_over_its_parts(
    cluster: SlurmCluster, tmp_path: Path, plugin: str
) -> None:
    script = batch(
        tmp_path / "parts.sbatch",
        "#SBATCH --ntasks=1 --constraint=fast",
        "#SBATCH hetjob",
        "#SBATCH --ntasks=1 --constraint=mid",
        "#SBATCH hetjob",
        "#SBATCH --ntasks=1 --constraint=slow",
        f"srun --mpi={plugin} --het-group=0-2 \\",
        "    sh -c 'echo $SLURM_PROCID of $SLURM_NTASKS $(hostname)'",
    )
    job = cluster.submit(script, options=[f"--output={tmp_path}/log"])
    cluster.wait(job)
    tasks = sorted((tmp_path / "log").read_text().splitlines())
    assert tasks == ["0 of 3 fast1", "1 of 3 mid1", "2 of 3 slow1"]


@pytest.mark.parametrize("plugin", ["pmi2", "pmix"])
def test_a_step_tells_its_tasks_apart(cluster: SlurmCluster, plugin: str) -> None:
    """What MPI libraries read: without a plugin every task takes itself for the only one."""
    variable = {"pmi2": "PMI_RANK", "pmix": "PMIX_RANK"}[plugin]
    show = ["sh", "-c", f"echo ${variable}"]
    done = cluster.run("srun", f"--mpi={plugin}", "--nodes=2", "--ntasks=2", *show)
    assert sorted(done.stdout.split()) == ["0", "1"]
    assert cluster.run("srun", "--nodes=2", "--ntasks=2", *show).stdout.split() == []


def test_a_job_goes_on_without_a_node_that_went_down(cluster: SlurmCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = batch(
        tmp_path / "long.sbatch",
        'echo "start $SLURM_RESTART_COUNT on $SLURM_JOB_NODELIST"',
        '[ -n "$SLURM_RESTART_COUNT" ] || srun sleep 600',
    )
    wide = ["--nodes=1-2", "--exclude=slow1", "--requeue", "--open-mode=append"]
    job = cluster.submit(script, options=[*wide, f"--output={log}"])
    try:
        cluster.wait(job, {"RUNNING"})
        deadline = time.monotonic() + 20
        while not (log.exists() and log.read_text()):
            assert time.monotonic() < deadline, cluster.queue()
            time.sleep(0.1)
        cluster.set_node("fast1", "down")
        cluster.wait(job, {"COMPLETED"}, timeout=90)
        nodes = re.findall(r"^start (\d*) on (.*)$", log.read_text(), flags=re.MULTILINE)
        assert nodes == [("", "fast1,mid1"), ("1", "mid1")]
        assert cluster.show(job)["Restarts"] == "1"
        assert "down" in cluster.run("sinfo", "-h", "-n", "fast1", "-p", "all", "-o", "%t").stdout
    finally:
        cluster.run("scancel", job, check=False)
        cluster.set_node("fast1", "resume")
    done = cluster.run("srun", "--nodelist=fast1", "hostname")
    assert done.stdout == "fast1\n"


def test_a_job_that_comes_to_nothing_is_told_with_its_log(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    script = batch(tmp_path / "failing.sbatch", "echo the reason", "exit 3")
    job = cluster.submit(script, cwd=tmp_path)
    with pytest.raises(AssertionError, match=rf"(?s)job {job} is FAILED.*the reason"):
        cluster.wait(job)
    with pytest.raises(AssertionError, match="exit status 3"):
        cluster.run("sh", "-c", "exit 3")


def test_speeds_that_cannot_be_are_refused(cluster: SlurmCluster) -> None:
    if not cluster.limited:
        pytest.skip("no CPU quotas on this system")
    for words, why in {
        ("fast2", "50"): "there is no node 'fast2'",
        ("fast1",): "'' is not a speed for fast1: give 5 percent or more, or max",
        ("fast1", "4"): "'4' is not a speed for fast1",
        (): "say which nodes get how much",
    }.items():
        done = control("speed", *words)
        assert (done.returncode, why in done.stderr) == (1, True), done.stderr


def test_nodes_that_cannot_be_are_refused(cluster: SlurmCluster) -> None:
    for nodes, why in {
        "fast1:fast:2": "say name:kind:cpus:speed",
        "a:fast:2:80 a:slow:2:80": "is taken",
        "a:all:2:80": "is taken",
        "a:slow:1:1": "no quota below 5 %",
    }.items():
        done = control("check", nodes=nodes)
        assert (done.returncode, why in done.stderr) == (1, True), done.stderr
        assert done.stderr.count("\n") == 1
