"""What a process reads of its Slurm job, and which jobs it refuses: from Slurm's variables."""

import os
from types import SimpleNamespace

import pytest

from helpers.fake_slurm import FakeSlurm
from helpers.running import LAUNCHERS, TRAIN, hetmp_run, refused
from hetmp.cluster import check_world
from hetmp.cluster.slurm import component_tasks, cpus_per_task, gpus_per_task, node_kind, safe_name
from hetmp.core.errors import HetmpError

TWO_KINDS = {
    "SLURM_HET_SIZE": "2",
    "SLURM_NTASKS_HET_GROUP_0": "1",
    "SLURM_NTASKS_HET_GROUP_1": "3",
}


@pytest.fixture
def told(monkeypatch):
    """Sets variables of a job; of none where it is not called."""
    for name in [name for name in os.environ if LAUNCHERS.match(name)]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("HETMP_NODE_KIND", raising=False)

    def tell(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return tell


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return FakeSlurm(tmp_path, monkeypatch)


def test_components_are_counted_where_a_job_has_them(told):
    assert component_tasks() == ()
    told(SLURM_HET_SIZE="2", SLURM_NTASKS_HET_GROUP_0="1")
    assert component_tasks() == ()
    told(**TWO_KINDS)
    assert component_tasks() == (1, 3)


def test_promises_by_task_are_numbers_or_nothing(told):
    assert gpus_per_task() is None and cpus_per_task() is None
    told(SLURM_GPUS_PER_TASK="2", SLURM_CPUS_PER_TASK="8")
    assert (gpus_per_task(), cpus_per_task()) == (2, 8)
    told(SLURM_GPUS_PER_TASK="a100:2", SLURM_CPUS_PER_TASK="")
    assert gpus_per_task() is None and cpus_per_task() is None


@pytest.mark.parametrize(("rank", "gpus"), [(0, 1), (1, None), (3, None), (4, None)])
def test_a_heterogeneous_jobs_gpus_are_promised_by_component(told, rank, gpus):
    told(**TWO_KINDS, SLURM_PROCID=str(rank), SLURM_GPUS_PER_TASK_HET_GROUP_0="1")
    assert gpus_per_task() == gpus


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("gpu,a100", "gpu-a100"),
        ("../../etc", "etc"),
        (".hidden", "hidden"),
        ("two words\n", "two-words"),
        ("v100_32+nvl", "v100_32+nvl"),
        ("/", ""),
    ],
)
def test_a_kind_is_safe_in_a_files_name(text, name):
    assert safe_name(text) == name


# --- the kind of a node ---------------------------------------------------------------------------


def features(slurm, text):
    """Make a scontrol that knows the node `n7` alone."""
    shown = f"NodeName=n7 Arch=x86_64 AvailableFeatures=a,b ActiveFeatures={text} Gres=gpu:2"
    slurm.command("scontrol", f'[ "$*" = "show node --oneliner n7" ] && echo "{shown}"')


def test_a_kind_is_what_the_user_says(told, slurm):
    features(slurm, "a100,ib")
    told(SLURMD_NODENAME="n7", SLURM_JOB_PARTITION="gpu", HETMP_NODE_KIND="my kind")
    assert node_kind() == "my-kind"


def test_a_kind_is_the_nodes_features(told, slurm):
    features(slurm, "a100,ib")
    told(SLURMD_NODENAME="n7", SLURM_JOB_PARTITION="gpu")
    assert node_kind() == "a100-ib"


def test_a_kind_without_features_is_the_partition(told, slurm):
    told(SLURMD_NODENAME="n7", SLURM_JOB_PARTITION="gpu")
    features(slurm, "(null)")
    assert node_kind() == "gpu"
    slurm.command("scontrol", "exit 1")
    assert node_kind() == "gpu"


def test_a_kind_is_not_the_partition_that_all_components_are_told(told, slurm, monkeypatch):
    """They are told the last one's."""
    monkeypatch.setattr("platform.node", lambda: "n7.site")
    features(slurm, "(null)")
    told(SLURMD_NODENAME="n7", SLURM_JOB_PARTITION="cpu", **TWO_KINDS)
    assert node_kind() == "n7.site"
    features(slurm, "a100")
    assert node_kind() == "a100"


def test_a_kind_outside_slurm_is_the_hosts_name(told, slurm, monkeypatch):
    slurm.command("scontrol", "echo ActiveFeatures=not-asked-for")
    monkeypatch.setattr("platform.node", lambda: "desk")
    told(SLURM_JOB_PARTITION="gpu")
    assert node_kind() == "desk"
    monkeypatch.setattr("platform.node", lambda: "")
    assert node_kind() == "node"


# --- worlds that are not what was started ---------------------------------------------------------


def test_one_world_of_all_ranks_is_accepted(told):
    check_world(SimpleNamespace(size=4))
    told(SLURM_PROCID="0", SLURM_STEP_NUM_TASKS="4", SLURM_NTASKS="4", **TWO_KINDS)
    check_world(SimpleNamespace(size=4))


def test_a_launcher_that_started_another_number_is_refused(told):
    told(SLURM_PROCID="0", SLURM_STEP_NUM_TASKS="4")
    with pytest.raises(HetmpError, match="started 4 processes, MPI sees 2 ranks: start all of the"):
        check_world(SimpleNamespace(size=2))
    with pytest.raises(HetmpError, match="MPI sees 4 separate worlds of 1 rank"):
        check_world(SimpleNamespace(size=1))


def test_mpirun_is_believed_before_the_job_that_it_runs_in(told):
    told(SLURM_PROCID="0", SLURM_NTASKS="4", PMI_RANK="0", PMI_SIZE="2")
    check_world(SimpleNamespace(size=2))


def test_a_part_of_a_heterogeneous_job_is_refused():
    part = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", **TWO_KINDS}
    done = hetmp_run(*TRAIN, **part)
    refused(done, "4 tasks in 2 components, MPI sees 1", "srun --het-group=0-1")


# --- GPUs that were promised ----------------------------------------------------------------------

PROMISED = {"SLURM_GPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": "0,1"}


def test_other_gpus_than_slurm_promised_are_refused_once():
    words = ("Slurm promised this task 1 GPU, and CUDA_VISIBLE_DEVICES='0,1' shows it 2",)
    refused(hetmp_run(*TRAIN, ranks=2, **PROMISED), *words, "leave that variable to srun")
    none = PROMISED | {"CUDA_VISIBLE_DEVICES": ""}
    refused(hetmp_run(*TRAIN, "--device", "cuda", **none), "CUDA_VISIBLE_DEVICES='' shows it 0")


def test_processors_do_not_care_about_gpus():
    done = hetmp_run(*TRAIN, "--steps", 1, "--device", "cpu", **PROMISED)
    assert done.returncode == 0, done.stderr
