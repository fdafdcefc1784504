"""Completion of the command line: in a real bash, and by the words that zsh and fish exchange."""

import shutil
import subprocess
import sys

import pytest

from helpers.running import environment, hetmp_run
from hetmp import data, models
from hetmp.cli.names import DATA_SETS, JOBS, MODELS, OPTIMIZERS
from hetmp.cli.program import COMMANDS
from hetmp.optim.by_name import OPTIMIZERS as MADE
from hetmp.tools.submit import TEMPLATES

BASH = shutil.which("bash")

DRIVER = """
shopt -s progcomp
source "$SCRIPT"
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMPREPLY=()
function=$(complete -p "$1" | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
"$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
"""What bash does at the tab key: it calls the function that is set for the first word."""


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    """Asks a real bash for the completions of words, the last of which has been begun."""
    if BASH is None:
        pytest.skip("there is no bash")
    folder = tmp_path_factory.mktemp("bash")
    script, program = folder / "script", folder / "hetmp"
    script.write_text(hetmp_run("completion", "bash").stdout)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hetmp.cli "$@"\n')
    program.chmod(0o755)
    (folder / "plans").mkdir()
    (folder / "plans.json").touch()

    def completed(*words):
        done = subprocess.run(
            [str(BASH), "--norc", "-c", DRIVER, "bash", *words],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=folder,
            env=environment(SCRIPT=str(script), PATH=f"{folder}:/usr/bin:/bin"),
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()

    return completed


IN_BASH = {
    "commands": (["hetmp", "e"], ["explain", "evaluate", "export"]),
    "options": (["hetmp", "train", "--sav"], ["--save-behind"]),
    "choices": (["hetmp", "train", "--device", "c"], ["cpu", "cuda"]),
    "networks": (["hetmp", "train", "--model", "paper"], ["paper-cifar", "paper-mnist"]),
    "networks as an argument": (["hetmp", "explain", "vgg"], ["vgg11", "vgg16"]),
    "data sets": (["hetmp", "evaluate", "--data", "di"], ["digits", "digits-segmentation"]),
    "optimizers": (["hetmp", "train", "--optimizer", "ada"], [
        "adadelta", "adagrad", "adam", "adamax", "adamw",
    ]),
    "the last of several names": (["hetmp", "train", "--autocast", "none,b"], ["none,bfloat16"]),
    "words": (["hetmp", "train", "--weights", "e"], ["equal"]),
    "a word or a path": (["hetmp", "train", "--resume", "au"], ["auto"]),
    "jobs": (["hetmp", "submit", "train"], ["train", "train_hetero"]),
    "options of the job's command": (["hetmp", "submit", "train", "--", "--mod"], ["--model"]),
    "values of the job's command": (
        ["hetmp", "submit", "profile", "--", "resnet18", "--device", "cu"], ["cuda"]
    ),
    "behind a launcher": (["mpirun", "-n", "3", "hetmp", "train", "--see"], ["--seed"]),
    "behind a launcher, by its path": (["srun", "./hetmp", "explain", "un"], ["unet"]),
    "another program behind a launcher": (["mpirun", "-n", "3", "python", "--see"], []),
    "shells": (["hetmp", "completion", "z"], ["zsh"]),
}  # fmt: skip


@pytest.mark.parametrize("case", IN_BASH, ids=[case.replace(" ", "-") for case in IN_BASH])
def test_bash_completes(bash, case):
    words, expected = IN_BASH[case]
    assert bash(*words) == expected


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("hetmp train --plan p", "file"),
        ("hetmp train --out p", "dir"),
        ("hetmp train --data-path p", "file"),
        ("hetmp inspect p", "file"),
        ("hetmp predict p", "file"),
        ("hetmp train --weights p", "file"),
        ("hetmp train --resume p", "file"),
    ],
)
def test_paths_are_completed_as_files_or_folders(words, kind):
    env = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = hetmp_run(_HETMP_COMPLETE="bash_complete", **env)
    assert done.stdout == f"{kind},p\n"


def test_zsh_and_fish_are_told_what_an_option_is_for():
    words = {"COMP_WORDS": "hetmp train --sched", "COMP_CWORD": "2"}
    told = hetmp_run(_HETMP_COMPLETE="zsh_complete", **words).stdout.splitlines()
    assert told[:2] == ["plain", "--schedule"] and told[2].startswith("Learning rate over the run")
    words["COMP_CWORD"] = "--sched"
    told = hetmp_run(_HETMP_COMPLETE="fish_complete", **words).stdout
    assert "--schedule" in told and "Learning rate over the run" in told


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_scripts_are_printed(shell):
    done = hetmp_run("completion", shell)
    assert done.returncode == 0
    assert f"_HETMP_COMPLETE={shell}_complete" in done.stdout
    if (program := shutil.which(shell)) is not None:
        subprocess.run([program, "-n"], input=done.stdout, text=True, check=True, timeout=60)


def test_commands_are_completed_with_their_summaries():
    done = hetmp_run(_HETMP_COMPLETE="zsh_complete", COMP_WORDS="hetmp ", COMP_CWORD="1")
    told = done.stdout.splitlines()
    assert told[1::3] == [name for names in COMMANDS.values() for name in names]
    assert not [summary for summary in told[2::3] if summary.endswith("...")]


def test_completing_starts_neither_torch_nor_mpi():
    script = (
        "import sys\nfrom hetmp.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print({'torch', 'mpi4py.MPI', 'matplotlib', 'h5py'} & set(sys.modules))\n"
    )
    for words in ("hetmp ", "hetmp train --", "hetmp train --model ", "hetmp submit train -- --"):
        env = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
        done = hetmp_run(module=("-c", script), cold=True, _HETMP_COMPLETE="bash_complete", **env)
        assert done.stdout.splitlines()[-1] == "set()", words
        assert len(done.stdout.splitlines()) > 4


def test_the_names_are_those_of_the_registries():
    assert sorted(MODELS) == models.names()
    assert sorted(DATA_SETS) == data.names()
    assert sorted(OPTIMIZERS) == sorted(MADE)
    assert list(TEMPLATES) == [*JOBS]
