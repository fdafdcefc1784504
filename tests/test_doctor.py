"""`hetmp doctor`: a line for each thing that it looked at, and a remedy where something is off."""

import platform

import pytest

import hetmp
from helpers.fake_slurm import FakeSlurm
from helpers.running import hetmp_run, refused
from hetmp.cluster import mpi_vendor
from hetmp.cluster.slurm.mpi_types import FITTING


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return FakeSlurm(tmp_path, monkeypatch)


def findings(done):
    """By what was looked at: whether it is ok, and what was found, with the remedy."""
    told = {}
    for line in done.stdout.splitlines():
        state = line.split(maxsplit=1)[0]
        if not line.startswith(" "):
            start = line.index("  ", len(state) + 2)
            what = line[len(state) : start].strip()
            assert what not in told, done.stdout
            told[what] = [state, line[start:].strip()]
        else:
            told[what][1] += f" {line.strip()}"
    return {what: (state, text) for what, (state, text) in told.items()}


def test_everything_is_looked_at_and_what_srun_needs_is_said(slurm):
    kind = FITTING[mpi_vendor()][0]
    slurm.offers("none", kind)
    done = hetmp_run("doctor", PATH=slurm.path, HETMP_GRACE_SECONDS=None)
    assert done.returncode == 0, done.stdout + done.stderr
    found = findings(done)
    assert list(found) == [
        "hetmp", "MPI", "world", "threads of MPI", "torch", "rank 0", "HDF5", "native code",
        "Slurm",
    ]  # fmt: skip
    assert {state for state, _ in found.values()} == {"ok"}
    assert found["hetmp"][1].startswith(f"{hetmp.__version__}, Python {platform.python_version()}")
    assert found["MPI"][1].startswith(mpi_vendor())
    assert found["world"][1] == "1 rank; start it with mpirun or srun to look at more"
    assert found["Slurm"][1] == f"use srun --mpi={kind} (it offers none, {kind})"


def test_ranks_that_are_alike_share_a_line_which_is_printed_once(slurm):
    slurm.offers("none", *FITTING[mpi_vendor()])
    done = hetmp_run("doctor", ranks=2, PATH=slurm.path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = findings(done)
    assert found["world"] == ("ok", "one of 2 ranks")
    assert "rank 0" not in found
    assert found["ranks 0-1"][0] == "ok"
    assert platform.node() in found["ranks 0-1"][1]


def test_a_slurm_that_gives_no_answer_is_off_with_its_words(slurm):
    slurm.command("srun", "echo 'srun: fatal: Could not establish a configuration' >&2; exit 1")
    done = hetmp_run("doctor", PATH=slurm.path)
    assert done.returncode == 1
    found = findings(done)
    assert [what for what, (state, _) in found.items() if state == "off"] == ["Slurm"]
    assert "remedy: srun failed: srun: fatal: Could not establish" in found["Slurm"][1]


def test_lonely_worlds_are_off_and_the_rest_is_still_looked_at(slurm):
    slurm.offers("none", *FITTING[mpi_vendor()])
    done = hetmp_run("doctor", PATH=slurm.path, SLURM_PROCID="0", SLURM_STEP_NUM_TASKS="3")
    assert done.returncode == 1
    found = findings(done)
    assert [what for what, (state, _) in found.items() if state == "off"] == ["world"]
    assert "3 separate worlds of 1 rank" in found["world"][1]
    assert "HDF5" in found


def test_other_gpus_than_promised_are_off(slurm):
    slurm.offers("none", *FITTING[mpi_vendor()])
    promised = {"SLURM_GPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": "0,1"}
    done = hetmp_run("doctor", PATH=slurm.path, **promised)
    assert done.returncode == 1
    assert "Slurm promised this task 1 GPU" in findings(done)["devices"][1]


def test_scripts_are_told_the_type_of_mpi_alone(slurm):
    kind = FITTING[mpi_vendor()][0]
    slurm.offers("none", kind)
    done = hetmp_run("doctor", "--srun-mpi", PATH=slurm.path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{kind}\n", "")
    slurm.offers("none")
    done = hetmp_run("doctor", "--srun-mpi", PATH=slurm.path)
    refused(done, f"{mpi_vendor()} starts with srun --mpi={kind}", "this Slurm offers none")
    assert done.stdout == ""
