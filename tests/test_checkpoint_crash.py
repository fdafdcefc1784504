"""Killed at any moment, or on a disk that fills up: a sound checkpoint is there."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.running import COLD, HERE, MPIRUN, environment, hetmp_run, warm_python
from hetmp.checkpoint.catalog import opened
from hetmp.checkpoint.folder import Folder

TRIES = 1 if "HETMP_TEST_SAMPLED" in os.environ else 5
"""How often each run is killed; benchmarks/crash.sh does it hundreds of times."""

RUN = (
    "train", "--model", "digits", "--data", "digits", "--batch-size", "200", "--weights", "3,1",
    "--dtype", "float64", "--epochs", "2", "--checkpoint-every", "1",
)  # fmt: skip


NOTED = """
import os, sys
with open(f"{sys.argv.pop(1)}/{os.getpid()}", "w") as file:
    file.write(open("/proc/self/stat").read().split()[21])
from hetmp.cli import main
main()
"""
"""The program, which leaves its process number, and when that began, in a folder."""


def started(out: Path, *more: str) -> subprocess.Popen:
    python = sys.executable if COLD else warm_python()
    processes = out.with_name("processes")
    processes.mkdir(exist_ok=True)
    command = [str(MPIRUN), "-n", "2", python, "-c", NOTED, str(processes), *RUN]
    return subprocess.Popen(
        [*command, "--out", str(out), *more], env=environment(), cwd=HERE, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def ranks_of(out: Path) -> list[int]:
    """The processes of the ranks whose run writes to *out*."""
    found = []
    for file in out.with_name("processes").iterdir():
        try:
            began = Path("/proc", file.name, "stat").read_text().split()[21]
        except OSError:
            continue
        if began == file.read_text():
            found.append(int(file.name))
    return found


def losses(out: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if record["kind"] == "step"}


@pytest.mark.parametrize("behind", [False, True])
def test_killed_while_saving_a_sound_checkpoint_is_there(tmp_path, behind):
    """One rank or all are killed, again and again; each time the run goes on, and it ends right."""
    chance = random.Random(1 + behind)
    out, whole = tmp_path / "killed", tmp_path / "whole"
    latest = out / "checkpoints" / "latest.h5"
    more = ["--save-behind"] if behind else []
    assert hetmp_run(*RUN, "--out", whole, ranks=2).returncode == 0
    reached = 0
    for _ in range(TRIES):
        run = started(out, "--resume", "auto", *more)
        deadline = time.monotonic() + 60
        while (
            (newest(out) <= reached or not latest.is_symlink())
            and time.monotonic() < deadline
            and run.poll() is None
        ):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.15))
        ranks = ranks_of(out)
        chosen = [chance.choice(ranks)] if ranks and chance.random() < 0.5 else ranks
        for pid in chosen:
            kill(pid)
        time.sleep(0.05)
        kill(-run.pid)
        run.wait(timeout=60)
        while ranks := ranks_of(out):  # again: a number from before may be another's by now
            for pid in ranks:
                kill(pid)
            time.sleep(0.005)
        step = newest(out)
        assert step >= reached
        reached = step
        if step:
            with opened(latest.resolve(strict=True)) as catalog:
                for stored in catalog.stored.values():
                    catalog.verify(stored)
    assert reached
    done = hetmp_run(*RUN, "--out", out, "--resume", "auto", ranks=2)
    assert done.returncode == 0, done.stderr
    found, expected = losses(out), losses(whole)
    assert found.keys() == expected.keys()
    assert all(abs(found[step] - expected[step]) <= 1e-10 * expected[step] for step in expected)


def newest(out: Path) -> int:
    return max((step for step, _ in Folder(out / "checkpoints").checkpoints()), default=0)


def kill(pid: int) -> None:
    try:
        if pid < 0:
            os.killpg(-pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


FULL = """
import os, resource, sys, torch, hetmp
from mpi4py import MPI
from helpers.saving import sliced, uneven, world
folder, limit = sys.argv[1], int(sys.argv[2])
model = sliced(world(), uneven(world().size))
hetmp.save(f"{folder}/a.h5", model)
before = resource.getrlimit(resource.RLIMIT_FSIZE)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
try:
    hetmp.save(f"{folder}/a.h5", model, extra={"big": torch.zeros(1 << 19)})
except hetmp.HetmpError as error:
    print(f"rank {world().rank} refused: {error}", flush=True)
hetmp.load(f"{folder}/a.h5", model)
print("still there", flush=True)
files = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
held = [os.readlink(file) for file in files if os.path.lexists(file)]
assert not [name for name in held if name.endswith("(deleted)") and folder in name], held
resource.setrlimit(resource.RLIMIT_FSIZE, before)
hetmp.save(f"{folder}/a.h5", model, extra={"small": 1})
"""


def full_disk(folder: Path, limit: int = 0) -> str:
    script = folder.parent / "full.py"
    script.write_text(FULL)
    done = hetmp_run(folder, limit, module=("-m", "mpi4py", str(script)), ranks=3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("refused:") == 3 and done.stdout.count("still there") == 3
    assert [file.name for file in folder.iterdir()] == ["a.h5"]
    return done.stdout


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs leave to mount a small disk (root)")
    try:
        told = full_disk(folder)
        assert "free: make room" in told
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_meanwhile_leaves_what_was(tmp_path):
    """A limit on the size of files stands for a quota: the writing itself fails."""
    folder = tmp_path / "limited"
    folder.mkdir()
    told = full_disk(folder, limit=1_000_000)
    assert "could not be written" in told
