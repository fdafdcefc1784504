"""The scripts of Slurm jobs: what they ask for, that a shell reads them as meant, who is refused.

Jobs on a real Slurm are in test_jobs.py.
"""

import io
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.progress import Progress

from helpers.fake_slurm import FakeSlurm
from hetmp.cli.commands.submit import submit as submit_command
from hetmp.cluster.slurm import called, chosen_mpi_type, commands, fitting, offered_mpi_types
from hetmp.core.errors import HetmpError
from hetmp.tools.submit import TEMPLATES, Component, Submitted, follow, make_job, render, submit
from hetmp.tools.submit.follow import RecordTail, job_state
from hetmp.tools.submit.follow import _show as show

CHECKOUT = Path(__file__).resolve().parents[1]
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.defpath}")

ARGUMENTS = """printf '%s\\0' "${arguments[@]}" """
AWKWARD = (
    "--model",
    "my net:build",
    "it's",
    '"',
    "$HOME",
    "`id`",
    "a\\b",
    "*",
    "",
    "é",
    "two\nlines",
)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    return FakeSlurm(folder, monkeypatch)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder without jobs/, and outside of any job."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("HETMP_RUN", raising=False)


def printed(*words, dry=True):
    """What `hetmp submit` prints, with --dry-run."""
    words = ["--dry-run"] * dry + [str(word) for word in words]
    return CliRunner().invoke(submit_command, words, catch_exceptions=False).output


def directives(script):
    return [line.split(maxsplit=1)[1] for line in script.splitlines() if line.startswith("#SBATCH")]


def in_bash(script, show, *words, **variables):
    """What *show* prints after the lines of a *script* that set `arguments` and `run`."""
    begin = script.index("\narguments=(")
    told = script[begin : script.index("\n\n", begin)]
    slurm = {"SLURM_JOB_NAME": "mine", "SLURM_JOB_ID": "12"}
    done = subprocess.run(
        ["bash", "-euc", f"{told}\n{show}", "script", *words],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"]} | slurm | variables,
    )
    assert not done.stderr
    return done.stdout


def arguments_in_bash(script, *words):
    return tuple(in_bash(script, ARGUMENTS, *words).split("\0")[:-1])


# --- the files in jobs/ ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_files_in_jobs_are_what_the_templates_give(name):
    written = (CHECKOUT / "jobs" / f"{name}.sbatch").read_text()
    assert written == render(name, make_job(name, {})), (
        f"rewrite it: .venv/bin/hetmp submit {name} --dry-run > jobs/{name}.sbatch"
    )


def test_every_file_in_jobs_has_a_template():
    assert {path.stem for path in (CHECKOUT / "jobs").glob("*.sbatch")} == set(TEMPLATES)


def test_a_dry_run_in_the_checkout_prints_the_file(monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    assert printed("train") == (CHECKOUT / "jobs" / "train.sbatch").read_text()


# --- a shell reads them as meant ------------------------------------------------------------------

SETTINGS = {
    "awkward arguments": {"arguments": AWKWARD},
    "no arguments": {"arguments": ()},
    "a site's options": {
        "account": "lab_7",
        "qos": "long",
        "options": ("--reservation=night", '--comment="two words"', "--exclusive"),
    },
    "awkward folders": {"run": "runs/a 'b' $c", "profiles": "my profiles"},
    "one kind of node": {
        "components": (
            {"partition": "gpu", "constraint": "a100&ib", "nodes": "1-4", "gpus_per_task": 2},
        )
    },
    "several kinds": {
        "components": (
            {"partition": "new", "constraint": "[a|b]&ib", "gpus_per_task": 1, "mem": "16G"},
            {"nodes": 2, "tasks_per_node": 4},
        )
    },
    "signs of the shell": {"checkpoint_every": "1&2", "mpi": "a|b(c)*"},
    "another signal": {"signal": "USR1", "notice": 30, "max_restarts": 0},
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_scripts_are_sound(tmp_path, template):
    files = []
    for number, (settings, env_file) in enumerate(
        itertools.product(SETTINGS.values(), ("jobs/env.sh", "my site's/env.sh", None))
    ):
        files.append(tmp_path / f"{number}.sbatch")
        files[-1].write_text(render(template, make_job(template, settings), env_file))
        subprocess.run(["bash", "-n", files[-1]], check=True)
    if SHELLCHECK is not None:
        # A `$` of the user's that stands in quotes is meant so.
        command = [SHELLCHECK, "--exclude=SC2016", *files]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("template", TEMPLATES)
def test_arguments_reach_the_shell_as_they_are(template):
    script = render(template, make_job(template, {"arguments": AWKWARD}))
    assert arguments_in_bash(script) == AWKWARD
    assert arguments_in_bash(script, *AWKWARD[::-1]) == AWKWARD[::-1]


def test_a_runs_folder_has_the_jobs_name_and_number_or_is_the_users():
    script = render("train", make_job("train", {}))
    assert in_bash(script, 'printf %s "$run"') == "runs/mine-12"
    assert in_bash(script, 'printf %s "$run"', HETMP_RUN="a b") == "a b"
    script = render("train", make_job("train", {"run": "runs/a 'b' $c"}))
    assert in_bash(script, 'printf %s "$run"', HETMP_RUN="a b") == "runs/a 'b' $c"


def test_settings_reach_the_shell_as_they_are():
    script = render("train", make_job("train", SETTINGS["signs of the shell"]))
    [mpi] = [line for line in script.splitlines() if line.startswith("mpi=")]
    assert in_bash(script, f'{mpi}; printf %s "$mpi"') == "a|b(c)*"
    start = script[script.index("launch hetmp train") :].partition("||")[0]
    words = in_bash(script, f"launch() {{ printf '%s\\0' \"$@\"; }}\n{start}").split("\0")
    assert words[words.index("--checkpoint-every") + 1] == "1&2"


def test_a_script_without_a_sites_file_reads_none():
    script = render("train", make_job("train", {}), None)
    assert "source" not in script.replace("shellcheck source", "")
    assert "activate its environment" in script


# --- what Slurm is asked for ----------------------------------------------------------------------


def test_flags_become_directives():
    script = printed(
        "train", "--name", "mine", "--time", "8:00:00", "--nodes", 2, "--partition", "gpu",
        "--constraint", "a100&ib", "--tasks-per-node", 4, "--cpus-per-task", 8,
        "--gpus-per-task", 1, "--mem", "64G", "--account", "lab", "--qos", "long",
        "--option=--exclusive", "--signal", "USR1", "--notice", 300,
    )  # fmt: skip
    assert directives(script) == [
        "--job-name=mine", "--output=%x-%j.out", "--open-mode=append", "--time=8:00:00",
        "--account=lab", "--qos=long", "--requeue", "--partition=gpu", "--constraint=a100&ib",
        "--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=8", "--gpus-per-task=1", "--mem=64G",
        "--signal=USR1@300", "--exclusive",
    ]  # fmt: skip
    assert "--stop-signal USR1" in script


def test_a_range_of_nodes_says_no_number_of_tasks():
    """Slurm would give the fewest nodes that are enough for them."""
    asked = Component(nodes="1-4", gpus_per_task=2).options()
    assert asked == ["--nodes=1-4", "--cpus-per-task=2", "--gpus-per-node=2"]


def test_every_component_of_a_job_is_asked_for_and_warned():
    script = printed(
        "train_hetero", "--component", "partition=new,nodes=2,gpus-per-task=1",
        "--component", "partition=cpu", "--option=--exclusive", "--qos", "long",
    )  # fmt: skip
    asked = directives(script)
    assert asked.count("hetjob") == 1
    first, second = asked[: asked.index("hetjob")], asked[asked.index("hetjob") + 1 :]
    assert {"--partition=new", "--nodes=2", "--gpus-per-task=1", "--qos=long"} < set(first)
    assert second == [
        "--partition=cpu", "--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=2",
        "--signal=USR2@120", "--exclusive",
    ]  # fmt: skip


def test_jobs_that_end_by_themselves_are_not_queued_again():
    for name in ("profile", "evaluate"):
        asked = directives(printed(name))
        assert "--requeue" not in asked
        assert not [line for line in asked if "signal" in line]


def test_flags_of_zero_are_told():
    script = printed("train", "--max-restarts", 0)
    assert "max_restarts=0" in script
    with pytest.raises(HetmpError, match="notice: Input should be greater than or equal to 1"):
        printed("train", "--notice", 0)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["name", "time", "account", "qos", "checkpoint_every", "mpi"])
@pytest.mark.parametrize(
    "value", ["a b", "a\n#SBATCH --x", "a\n", "$(id)", "`id`", "a;b", "a'", ""]
)
def test_what_a_shell_would_read_otherwise_is_refused(field, value):
    with pytest.raises(HetmpError) as refused:
        make_job("train", {field: value})
    assert field in str(refused.value)
    assert f"{value!r} cannot be put into a script" in str(refused.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian"], "unknown job template 'trian': did you mean 'train'?"),
        (["train", "--component", "node=2"], "unknown component setting 'node': did you mean 'no"),
        (["train", "--component", "nodes"], "'nodes' is not name=value"),
        (["train", "--component", "nodes=two"], "nodes: 'two' is neither a number of nodes"),
        (["train", "--component", "mem=1 G"], "component 'mem=1 G': mem: '1 G' "),
        (["train", "--nodes", "4-1"], "'4-1' is neither a number of nodes such as 2 nor a range"),
        (["train", "--nodes", "0"], "'0' is neither a number of nodes"),
        (["train", "--nodes", "1-2", "--tasks-per-node", "2"], "give one number of nodes, or 1 t"),
        (["train", "--signal", "USR3"], "unknown signal 'USR3': did you mean 'USR"),
        (["train", "--option", "night"], "'night' is not an option of sbatch such as --res"),
        (["train", "--option", "--a\n#SBATCH --b"], "is not an option of sbatch"),
        (["train_hetero", "--nodes", "2"], "--nodes is ambiguous for a job of 3 components"),
        (["train_hetero", "--gpus-per-task", "0"], "--gpus-per-task is ambiguous for a job of 3"),
        (["train", "--", "--out", "x"], "give the run's folder by --run of hetmp submit"),
        (["train_hetero", "--", "--out=x"], "give the run's folder by --run of hetmp submit"),
        ([], "give the kind of job: train, train_hetero, profile, evaluate"),
        (["--config", "nowhere.toml"], "job nowhere.toml cannot be read"),
    ],
)  # fmt: skip
def test_a_job_that_cannot_be_is_refused_in_words(words, told):
    with pytest.raises(HetmpError) as refused:
        printed(*words)
    assert told in str(refused.value)


def test_other_jobs_may_write_where_they_like():
    assert "arguments=(digits --out p.json)" in printed(
        "profile", "--", "digits", "--out", "p.json"
    )


# --- a job in a file ------------------------------------------------------------------------------

JOB = """
template = "train_hetero"
time = "2:00:00"
max_restarts = 3
arguments = ["--model", "vgg11"]
[[components]]
partition = "new"
nodes = 2
gpus_per_task = 1
[[components]]
partition = "cpu"
"""


@pytest.fixture
def job_file(tmp_path):
    def write(text=JOB):
        path = tmp_path / "job.toml"
        path.write_text(text)
        return path

    return write


def test_a_file_says_the_job(job_file):
    script = printed("--config", job_file())
    assert "arguments=(--model vgg11)" in script
    assert "max_restarts=3" in script
    asked = directives(script)
    assert "--time=2:00:00" in asked and "--gpus-per-task=1" in asked
    assert [line for line in asked if "partition" in line or line == "hetjob"] == [
        "--partition=new", "hetjob", "--partition=cpu"
    ]  # fmt: skip


def test_flags_win_over_the_file(job_file):
    script = printed(
        "train", "--config", job_file(), "--time", "5", "--max-restarts", 0,
        "--component", "partition=old", "--", "--model", "digits",
    )  # fmt: skip
    assert "arguments=(--model digits)" in script
    assert "max_restarts=0" in script
    asked = directives(script)
    assert "--time=5" in asked and "hetjob" not in asked
    assert [line for line in asked if "partition" in line] == ["--partition=old"]


def test_flags_win_over_the_one_component_of_the_file(job_file):
    path = job_file('template = "train"\n[[components]]\ngpus_per_task = 1\nmem = "8G"\n')
    asked = directives(printed("--config", path, "--gpus-per-task", 0, "--nodes", "1-3"))
    assert "--mem=8G" in asked and "--nodes=1-3" in asked
    assert not [line for line in asked if "gpus" in line]


def test_what_follows_the_dashes_is_arguments_where_the_file_says_which_job(job_file):
    script = printed("--config", job_file(), "--", "--model", "digits", "--epochs", 3)
    assert "arguments=(--model digits --epochs 3)" in script
    assert "hetjob" in script
    script = printed("profile", "--config", job_file(), "--", "digits")
    assert "arguments=(digits)" in script
    assert "launch hetmp profile" in script


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nodes = 2", "unknown job setting 'nodes': did you mean 'notice'?"),
        ('template = "trian"', "unknown job template 'trian': did you mean 'train'?"),
        ("template = 3", "unknown job template '3'"),
        ("[[components]]\nnode = 2", "job.toml: components.0.node: Extra inputs are not permitted"),
        ("[[components]]\nmem = 'a b'", "components.0.mem: 'a b' cannot be put into"),
        ("components = []", "job.toml: components: Tuple should have at least 1 item"),
        ("arguments = '--model digits'", "job.toml: arguments: Input should be a valid tuple"),
        ("time = ", "job.toml cannot be read: "),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_its_place(job_file, text, told):
    template = [] if "template" in text else ["train"]
    with pytest.raises(HetmpError) as refused:
        printed(*template, "--config", job_file(text))
    assert told in str(refused.value)


# --- Slurm's commands -----------------------------------------------------------------------------


def test_a_command_that_is_not_there_is_named(slurm):
    with pytest.raises(HetmpError, match=r"^no-such-command is not on this machine: .*mpirun\.sh"):
        called("no-such-command", "--version")


def test_a_command_that_fails_is_quoted(slurm):
    slurm.command("sbatch", "echo one >&2; echo 'sbatch: error: no such account' >&2; exit 1")
    with pytest.raises(HetmpError, match=r"^sbatch failed: one; sbatch: error: no such account$"):
        called("sbatch", "x")
    slurm.command("sbatch", "echo 'on the other stream'; exit 3")
    with pytest.raises(HetmpError, match=r"^sbatch failed: on the other stream$"):
        called("sbatch", "x")


def test_a_command_that_hangs_is_given_up(slurm, monkeypatch):
    slurm.command("scontrol", "exec sleep 60")
    monkeypatch.setattr(commands, "SECONDS", 0.2)
    with pytest.raises(HetmpError, match=r"^scontrol gave no answer within 0\.2 s: try again$"):
        called("scontrol", "ping")


def test_a_job_that_is_sent_is_known_by_its_number(slurm, monkeypatch):
    """Where clusters are federated, sbatch names the cluster, too; some sites' prints a line."""
    kept = slurm.folder / "script"
    slurm.command("sbatch", f'echo "your quota: 3 TB"\necho "12;north"\ncat "$2" > {kept}')
    sent = submit("train", make_job("train", {"name": "a/b"}), "#!/bin/bash\nexit\n")
    assert sent == Submitted(12, Path("a/b-12.out"), Path("runs/a/b-12"))
    assert kept.read_text() == "#!/bin/bash\nexit\n"
    assert submit("train", make_job("train", {"run": "runs/x"}), "").run == Path("runs/x")
    assert submit("profile", make_job("profile", {}), "").run is None
    monkeypatch.setenv("HETMP_RUN", "runs/y")
    assert submit("train", make_job("train", {}), "").run == Path("runs/y")


LISTS = {
    "20.11": (
        "srun: MPI types are...\nsrun: none\nsrun: pmi2\nsrun: pmix_v3\n",
        ("none", "pmi2", "pmix_v3"),
    ),
    "20.02, with a plain name": (
        "srun: MPI types are...\nsrun: pmix_v3\nsrun: pmix\nsrun: cray_shasta\n",
        ("pmix_v3", "pmix", "cray_shasta"),
    ),
    "22.05": (
        "MPI plugin types are...\n\tpmix\n\tnone\n\tcray_shasta\n\tpmi2\n"
        "specific pmix plugin versions available: pmix_v4\n",
        ("pmix", "none", "cray_shasta", "pmi2", "pmix_v4"),
    ),
    "23.11": (
        "MPI plugin types are...\n\tnone\n\tpmi2\n\tpmix\n"
        "specific pmix plugin versions available: pmix_v4,pmix_v5\n",
        ("none", "pmi2", "pmix", "pmix_v4", "pmix_v5"),
    ),
    "without any": ("MPI plugin types are...\n", ()),
}  # fmt: skip


@pytest.mark.parametrize("stream", [1, 2])
@pytest.mark.parametrize("release", LISTS, ids=[name.replace(" ", "-") for name in LISTS])
def test_what_srun_lists_is_read(slurm, release, stream):
    said, types = LISTS[release]
    slurm.command("srun", f"printf %s {shlex.quote(said)} >&{stream}")
    assert offered_mpi_types() == types


@pytest.mark.parametrize(
    ("vendor", "offered", "kind"),
    [
        ("Open MPI", ("none", "pmi2", "pmix", "pmix_v5"), "pmix"),
        ("Open MPI", ("none", "pmi2", "pmix_v3"), "pmix_v3"),
        ("MPICH", ("none", "cray_shasta", "pmi2", "pmix"), "pmi2"),
        ("MPICH", ("none", "cray_shasta", "pmix"), "cray_shasta"),
        ("Intel MPI", ("none", "pmi2", "pmix"), "pmi2"),
        ("MVAPICH", ("pmix", "pmi2"), "pmi2"),
        ("Another MPI", ("pmi2", "pmix"), "pmix"),
        ("Another MPI", ("pmi2",), "pmi2"),
    ],
)
def test_each_library_gets_what_it_starts_with(vendor, offered, kind):
    assert fitting(vendor, offered) == kind


def test_nothing_that_fits_is_said_with_what_there_is():
    with pytest.raises(
        HetmpError, match=r"MPICH starts with srun --mpi=pmi2 or cray_shasta, and t"
    ):
        fitting("MPICH", ("none", "pmix"))
    with pytest.raises(HetmpError, match=r"offers none, pmi2: use the site's own MPI"):
        fitting("Open MPI", ("none", "pmi2"))
    with pytest.raises(HetmpError, match=r"offers nothing"):
        fitting("Open MPI", ())


def test_a_real_submission_says_the_type_of_mpi_and_a_dry_run_leaves_it_to_the_job(slurm):
    from hetmp.cluster import mpi_vendor

    slurm.offers("none", "pmi2", "pmix")
    kept = slurm.folder / "script"
    slurm.command("sbatch", f'echo 12\ncat "$2" > {kept}')
    told = printed("train", dry=False)
    assert told == "submitted job 12; log: hetmp-train-12.out; run: runs/hetmp-train-12\n"
    assert "mpi=${HETMP_SRUN_MPI:-" + chosen_mpi_type(mpi_vendor()) + "}" in kept.read_text()
    assert "mpi=${HETMP_SRUN_MPI:-auto}" in printed("train")


def test_a_job_that_slurm_has_forgotten_is_no_error(slurm, tmp_path):
    said = "slurm_load_jobs error: Invalid job id specified"
    slurm.command("scontrol", f"echo '{said}' >&2; exit 1")
    assert job_state(12) == ("", "")
    assert follow(Submitted(12, tmp_path / "log", tmp_path)) == ""
    slurm.command("scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(HetmpError, match="Unable to contact"):
        job_state(12)


# --- the records of a run that is followed --------------------------------------------------------


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def run_record(resumed, steps=9):
    return {"kind": "run", "resumed": resumed, "steps": steps}


def step(number, loss=1.0):
    return {"kind": "step", "step": number, "loss": loss}


@pytest.fixture
def metrics(tmp_path):
    return tmp_path / "metrics.jsonl"


def replace(path, text):
    beside = path.with_name("beside")
    beside.write_text(text)
    beside.replace(path)


def test_records_are_told_once_and_when_they_are_whole(metrics):
    records = RecordTail(metrics)
    assert list(records.new()) == []
    metrics.write_text("")
    assert list(records.new()) == []
    torn = lines(step(1))
    metrics.write_text(lines(run_record(0), step(0)) + torn[:9])
    assert list(records.new()) == [run_record(0), step(0)]
    assert list(records.new()) == []
    with metrics.open("a") as file:
        file.write(torn[9:])
    assert list(records.new()) == [step(1)]
    assert list(records.new()) == []


def test_a_resumed_run_is_told_from_where_it_goes_on(metrics):
    records = RecordTail(metrics)
    metrics.write_text(lines(run_record(0), step(0), step(1), step(2)))
    assert len(list(records.new())) == 4
    # Step 2 was lost.
    replace(metrics, lines(run_record(0), step(0), step(1), run_record(2), step(2, 0.5)))
    assert list(records.new()) == [run_record(2), step(2, 0.5)]
    with metrics.open("a") as file:
        file.write(lines(step(3)))
    assert list(records.new()) == [step(3)]


def test_a_resumed_run_whose_first_record_is_yet_to_come_tells_nothing_twice(metrics):
    records = RecordTail(metrics)
    metrics.write_text(lines(run_record(0), step(0), step(1)))
    assert len(list(records.new())) == 3
    kept = lines(run_record(0), step(0))
    replace(metrics, kept)
    assert list(records.new()) == []
    torn = lines(run_record(1))
    metrics.write_text(kept + torn[:20])
    assert list(records.new()) == []
    metrics.write_text(kept + torn + lines(step(1, 0.5)))
    assert list(records.new()) == [run_record(1), step(1, 0.5)]


def test_a_run_that_began_anew_is_told_from_its_start(metrics):
    records = RecordTail(metrics)
    metrics.write_text(lines(run_record(0), step(0)))
    assert len(list(records.new())) == 2
    replace(metrics, "")
    assert list(records.new()) == []
    metrics.write_text(lines(run_record(0, steps=5), step(0)))
    assert list(records.new()) == [run_record(0, steps=5), step(0)]


def test_a_loss_that_is_no_number_is_shown_while_a_job_is_followed():
    console = Console(file=io.StringIO(), width=100)
    with Progress(console=console, disable=True) as progress:
        bar = progress.add_task("")
        told = {"step": 23, "epoch": 0, "loss": None, "accuracy": 0.5}
        show(told | {"kind": "step"}, progress, bar)
        assert progress.tasks[bar].description == "loss nan"
        show(told | {"kind": "evaluation"}, progress, bar)
    assert "epoch   1  step    23  test 50.00 %, loss nan" in console.file.getvalue()
