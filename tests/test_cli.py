"""The program as a user runs it: what it prints, how it fails, and that it never hangs."""

import json

import pytest

import hetmp
from helpers.running import PROGRAMS, TRAIN, hetmp_run, invoked, refused
from hetmp.core.errors import HetmpError


def test_version_names_what_it_stands_on():
    done = hetmp_run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith(f"hetmp {hetmp.__version__} (torch ")


def test_help_fits_80_columns_and_lists_the_commands():
    for arguments in (["--help"], ["train", "--help"], ["models", "--help"], []):
        done = hetmp_run(*arguments)
        text = done.stdout + done.stderr
        assert max(len(line) for line in text.splitlines()) <= 80
    assert "--weights" in hetmp_run("train", "--help").stdout


def test_help_under_mpirun_is_printed_once():
    done = hetmp_run("--help", ranks=3)
    assert done.returncode == 0
    assert done.stdout.count("Usage:") == 1


def test_models_are_listed():
    done = hetmp_run("models")
    assert done.returncode == 0
    for name in ("digits", "paper-mnist", "paper-cifar", "vgg11", "vgg16", "138,357,544"):
        assert name in done.stdout


def test_three_ranks_train_and_write(tmp_path):
    out = tmp_path / "a run"
    done = hetmp_run(*TRAIN, "--weights", "70,25,5", "--epochs", 2, "--out", out, ranks=3)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("test accuracy") == 1
    assert "71 %, 26 %, 4 %" in done.stdout
    assert sorted(path.name for path in out.iterdir()) == [
        "config.toml", "metrics.jsonl", "model.h5", "plan.json"
    ]  # fmt: skip
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["kind"] == "end"


BAD = {
    "weights for another number of ranks": (
        ["--weights", "70,25"],
        ["2 weights (70.0, 25.0) for 3 ranks"],
    ),
    "no weight above zero": (["--weights", "0,0,0"], ["all weights are 0"]),
    "a negative weight": (["--weights", "1,-1,1"], ["weight -1.0 of rank 1 is negative"]),
    "a weight that is no number": (["--weights", "1,nan,1"], ["weight nan of rank 1"]),
    "an unknown model": (["--model", "digit"], ["'digit'", "did you mean 'digits'"]),
    "an unknown data set": (["--data", "digitz"], ["'digitz'", "did you mean 'digits'"]),
    "an unknown optimizer": (["--optimizer", "adamm"], ["'adamm'", "did you mean 'adam'"]),
    "an optimizer that slices cannot have": (
        ["--optimizer", "adafactor"],
        ["adafactor is wrong on slices: it needs row and column means", "use adamw"],
    ),
    "an unknown option of the optimizer": (
        ["--optimizer-option", "nesterofv=true"],
        ["option of sgd 'nesterofv'", "did you mean 'nesterov'"],
    ),
    "an unknown schedule": (["--schedule", "cosin"], ["did you mean 'cosine'"]),
    "an unknown device": (["--device", "gpu"], ["unknown device 'gpu'", "cuda"]),
    "no GPU": (["--device", "cuda"], ["has no GPU", "--device auto"]),
    "a batch of no images": (["--batch-size", "0"], ["batch_size"]),
    "a learning rate of zero": (["--lr", "0"], ["lr"]),
    "both epochs and steps": (["--epochs", "1", "--steps", "1"], ["epochs and steps"]),
    "a plan that is not there": (["--plan", "nowhere.json"], ["nowhere.json"]),
    "a folder that cannot be": (["--out", "/dev/null/run"], ["rank 0", "/dev/null/run"]),
    "a layer without a rule": (
        ["--model", "own_network:with_a_layer_of_my_own", "--strict"],
        ["layer '0' (Doubled) cannot be sliced", "no rule"],
    ),
    "a module that is not there": (["--model", "no_such_module:build"], ["no_such_module"]),
    "a loss that is no number": (["--model", "own_network:diverging"], ["the loss is nan at step"]),
}


@pytest.mark.parametrize("case", BAD, ids=[case.replace(" ", "-") for case in BAD])
def test_bad_input_is_one_message_and_a_failure_everywhere(case):
    flags, words = BAD[case]
    code = 1 if case == "a loss that is no number" else 2
    refused(hetmp_run(*TRAIN, *flags, ranks=3), *words, code=code)


def test_a_wrong_flag_or_command_names_the_nearest():
    refused(hetmp_run("trian", ranks=2), "did you mean 'train'", code=2)
    refused(hetmp_run("train", "--weihgts", "1,1", ranks=2), "did you mean --weights?", code=2)


def test_a_rank_that_raises_alone_ends_the_job():
    done = hetmp_run(*TRAIN, ranks=3, module=(str(PROGRAMS / "failing_alone.py"),), timeout=240)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if "hetmp: error:" in line]
    assert said == [
        "hetmp: error: rank 1 failed while the others went on: "
        "OSError: the disk of this rank is gone"
    ]


def test_lonely_worlds_are_caught():
    """What srun --mpi=pmix makes of an MPICH program: three processes, three worlds of one."""
    lonely = {"SLURM_NTASKS": "3", "SLURM_STEP_NUM_TASKS": "3"}
    done = hetmp_run(*TRAIN, SLURM_PROCID="0", **lonely)
    refused(done, "3 separate worlds of 1 rank", "--mpi=pmix", "--mpi=pmi2")
    silent = hetmp_run(*TRAIN, SLURM_PROCID="1", **lonely)
    assert silent.returncode != 0
    assert silent.stderr == ""


def test_measure_plan_and_train(tmp_path):
    """The three commands, each with what the one before it wrote."""
    profile, plan, four = (tmp_path / f"{name}.json" for name in ("profile", "plan", "four"))
    flags = ("--batch-size", 100, "--seconds", 0.1, "--filters-only", "--out", profile)
    done = hetmp_run("profile", "digits", "--device", "cpu", *flags, ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Devices") == 1 and "Allgatherv" in done.stdout
    shown = invoked("profile", "--show", profile)
    assert shown.output.startswith("digits, batch 100, float32, ")
    told = invoked("plan", "digits", "--profile", profile, "--keep-all", "--out", plan).output
    assert "predicted time of a step" in told and "features.conv1" in told
    assert hetmp.Plan.load(plan).ranks == 2
    twice = ("--profile", profile, "--profile", profile, "--shape", "1,8,8", "--classes", 10)
    told = invoked("plan", "digits", *twice, "--keep-all", "--json", "--out", four).output
    assert json.loads(told)["plan"]["ranks"] == 4
    auto = ("--weights", "auto", "--profile", profile)
    done = hetmp_run(*TRAIN, "--steps", 2, "--device", "cpu", *auto, ranks=2)
    assert done.returncode == 0, done.stderr
    assert "planned: " in done.stdout
    left_out = done.stdout.count(" is left out: ")  # by a planner that had little time to measure
    told = "2 ranks" if left_out == 0 else "1 of 2 ranks"
    assert f"after 2 steps on {told}\n" in done.stdout


def test_weights_from_a_file(tmp_path):
    path = tmp_path / "part.dist"
    path.write_text("node 0 70\nnode 1 25\nnode 2 5\n")
    done = hetmp_run(*TRAIN, "--weights", path, "--steps", 2, ranks=3)
    assert done.returncode == 0, done.stderr
    assert "71 %, 26 %, 4 %" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "digits"], "either --profile FILE or --ranks-from FILE"),
        (["plan", "digits", "--profile", "nowhere.json"], "nowhere.json cannot be read"),
        (["plan", "digits", "--ranks-from", "nowhere.toml"], "nowhere.toml cannot be read"),
        (["profile"], "either a MODEL to measure or --show FILE"),
        (["profile", "--show", "nowhere.json"], "nowhere.json cannot be read"),
    ],
)
def test_commands_without_what_they_need(arguments, words):
    with pytest.raises(HetmpError, match=words):
        invoked(*arguments)


def test_bytes_that_are_no_number():
    with pytest.raises(HetmpError, match="'much' is not a number of bytes such as 500M or 4GiB"):
        invoked("plan", "digits", "--memory-limit", "much")
