"""A run in one file: what is read is what was written, and who is refused, in which words."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import hetmp
from helpers.running import MPIRUN, TRAIN, environment, hetmp_run, refused
from hetmp.cli.commands.train import config_from_flags, train_command
from hetmp.cli.program import commands
from hetmp.core.errors import HetmpError
from hetmp.run.config import HEADINGS, TrainConfig, train_config
from hetmp.run.config_file import (
    config_text,
    flags_over,
    read_config,
    write_run_config,
)
from hetmp.run.versions import differing_versions, present_versions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BASE = {"model": "digits", "data": "digits"}


@pytest.fixture
def config_file(tmp_path):
    """A function that writes a file, and says where it is."""

    def written(text):
        path = tmp_path / "run.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return written


def flags_given(*words):
    """The configuration that the command makes of its flags, and its note."""
    command = train_command()
    return config_from_flags(
        command.make_context("hetmp train", [str(word) for word in words]).params
    )


def printed(*words):
    """What ``hetmp train ... --print-config`` prints."""
    done = CliRunner().invoke(
        train_command(), [*map(str, words), "--print-config"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return done.output


# --- what is read is what was written -------------------------------------------------------------

CONFIGS = {
    "defaults": {},
    "numbers": {"lr": 1e-05, "weight_decay": 1e16, "clip": 0.1, "seed": 2**63 - 1, "steps": 3},
    "lists": {"weights": (70.0, 25, 0), "shape": (3, 32, 32), "slowdown": (1.0, 2.5)},
    "a word for a list": {"weights": "auto", "profile": Path("/a b/profile.json")},
    "switches": {"strict": True, "no_shared_memory": True, "drop_last": False},
    "text to be quoted": {"model": 'my net:"build"\\n', "out": Path("/runs/it's # \n é")},
    "a folder": {"out": Path("/runs/x"), "checkpoint_every": "2epochs", "resume": "auto"},
    "a checkpoint": {"resume": "/runs/x/checkpoints/latest.h5"},
    "options": {
        "optimizer_options": {
            "nesterov": True,
            "betas": [0.9, 0.99],
            "eps": 1e-08,
            "a key": 'a "word"',
            "inner": {"deep": {"x": 1}, "y": []},
        }
    },
}


@pytest.mark.parametrize("case", CONFIGS)
def test_what_is_read_is_what_was_written(config_file, case):
    config = train_config(**{**BASE, **CONFIGS[case]})
    told = read_config(config_file(config_text(config)))
    assert train_config(**told.fields) == config
    assert told.versions == {}


values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values), st.text(), st.floats(1e-300, 1e300))
def test_any_text_number_and_table_is_read_as_it_was(tmp_path_factory, options, model, lr):
    config = TrainConfig(model=model, data="digits", lr=lr, optimizer_options=options)
    path = tmp_path_factory.mktemp("any") / "run.toml"
    path.write_bytes(config_text(config).encode())
    assert train_config(**read_config(path).fields) == config


def test_every_field_stands_there_with_what_it_means():
    text = config_text(train_config(**BASE))
    assert max(map(len, text.splitlines())) <= 88
    words = " ".join(line.removeprefix("# ") for line in text.splitlines())
    for name, field in TrainConfig.model_fields.items():
        described = f"{' '.join(field.description.split())} "
        assert described + f"{name} = " in words or f"{described}[{name}]" in words
    assert "\n# clip = ...\n" in text
    assert "\nbatch_size = 64\n" in text
    assert HEADINGS.keys() <= TrainConfig.model_fields.keys()


def test_relative_paths_start_in_the_files_folder(config_file, tmp_path, monkeypatch):
    path = config_file('plan = "plans/p.json"\nout = "/runs/x"\nresume = "x.h5"')
    told = read_config(path).fields
    assert told["plan"] == str(tmp_path / "plans" / "p.json")
    assert told["out"] == "/runs/x"
    assert told["resume"] == str(tmp_path / "x.h5")
    assert read_config(config_file('resume = "auto"')).fields == {"resume": "auto"}
    (tmp_path / "part.dist").write_text("70\n25\n")
    assert read_config(config_file('weights = "part.dist"')).fields == {"weights": (70.0, 25.0)}
    # What is printed can be kept in any folder.
    monkeypatch.chdir(tmp_path)
    assert tomllib.loads(printed(*TRAIN[1:], "--out", "x"))["out"] == str(tmp_path / "x")


def test_a_file_of_another_editor(config_file):
    assert read_config(config_file(b"\xef\xbb\xbflr = 0.1\r\nsteps = 3\r\n")).fields["steps"] == 3


# --- who is refused -------------------------------------------------------------------------------

DAMAGED = {
    "a misspelt name": ("batchsize = 3", ["unknown setting 'batchsize'", "mean 'batch_size'"]),
    "a flag's name": ("batch-size = 3", ["'batch-size'", "did you mean 'batch_size'?"]),
    "a name like none": ("q = 3", ["unknown setting 'q' (hetmp train --help lists all)"]),
    "settings in a table": ("[train]\nlr = 0.1", ["'train'", "above all [tables]"]),
    "a setting behind a table": (
        '[versions]\ntorch = "2.13.0"\nlr = 0.1',
        ["versions must be names and versions as text"],
    ),
    "no value": ("lr =\n", ["cannot be read", "at line 1"]),
    "what is printed of an unset one": ("steps = 3\nclip = ...\n", ["cannot be read", "line 2"]),
    "the same twice": ("lr = 1\nlr = 2\n", ["cannot be read", "line 2", "set twice"]),
    "a table twice": (
        "[optimizer_options]\na = 1\n[optimizer_options]\nb = 1",
        ["cannot be read", "optimizer_options", "twice", "line 3"],
    ),
    "a quote left open": ('model = "digits\n', ["cannot be read", "line 1"]),
    "no text": (b"model = '\xff'", ["cannot be read", "utf-8"]),
    "no TOML": ('{"model": "digits"}', ["cannot be read", "line 1"]),
    "a word for a number": ('batch_size = "many"', ["batch_size: ", "integer", "got 'many'"]),
    "a number out of range": ("batch_size = 0", ["batch_size: ", "or equal to 1, got 0"]),
    "a broken number": ("epochs = 1.5", ["epochs: ", "integer", "got 1.5"]),
    "a number for a list": ("shape = 3", ["shape: Input should be a list, got 3"]),
    "a wrong entry of a list": ('weights = [70, "a"]', ["run.toml: weights.1: ", "got 'a'"]),
    "a flag's list": (
        'weights = "70,25,5"',
        ["weights: '70,25,5' is neither a list such as [70, 25, 5]"],
    ),
    "weights that cannot be": ("weights = [1, -1]", ["weight -1.0 of rank 1 is negative"]),
    "a number for a path": ("plan = 3", ["plan: Input is not a valid path, got 3"]),
    "no table": ("optimizer_options = 3", ["optimizer_options: Input should be a table, got 3"]),
    "an unknown choice": ('schedule = "cosin"', ["schedule 'cosin'", "did you mean 'cosine'"]),
    "no yes and no no": ('strict = "perhaps"', ["strict: ", "boolean", "got 'perhaps'"]),
    "versions that are none": (
        "versions = 3",
        ["versions must be names and versions as text, got 3"],
    ),
    "infinity": ("lr = inf", ["lr: ", "finite"]),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_with_the_place_and_the_reason(config_file, case):
    text, words = DAMAGED[case]
    path = config_file(text)
    with pytest.raises(HetmpError) as refusal:
        read_config(path)
    for word in [f"config {path}", *words]:
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "pydantic" not in str(refusal.value)


def test_no_file_and_a_folder_are_refused(tmp_path):
    for path, word in ((tmp_path, "Is a directory"), (tmp_path / "x.toml", "No such file")):
        with pytest.raises(HetmpError, match=f"config {path} cannot be read: .*{word}"):
            read_config(path)


def test_model_and_data_are_asked_for(config_file):
    with pytest.raises(HetmpError, match=r"^model: give --model NAME, or a --config file that"):
        flags_given("--data", "digits")
    path = config_file('model = "digits"')
    with pytest.raises(HetmpError, match=r"^data: give --data NAME, .*run.toml does not\)"):
        flags_given("--config", path)
    assert flags_given("--config", path, "--data", "digits")[0] == train_config(**BASE)


def test_what_two_settings_say_is_judged_with_the_flags(config_file):
    path = config_file('model = "digits"\ndata = "digits"\ncheckpoint_every = "5"')
    with pytest.raises(HetmpError, match="checkpoint_every needs a folder"):
        flags_given("--config", path)
    assert flags_given("--config", path, "--out", "x")[0].checkpoint_every == "5"
    with pytest.raises(HetmpError, match="epochs and steps both set"):
        flags_given("--config", config_file("epochs = 1\nsteps = 1"), *TRAIN[1:])


# --- flags win ------------------------------------------------------------------------------------

OVER = {
    "a number": ("lr = 0.1", ["--lr", "0.5"], {"lr": 0.5}),
    "what the file alone says stays": ("lr = 0.1", ["--steps", "5"], {"lr": 0.1, "steps": 5}),
    "a plan's opposite": ('plan = "p.json"', ["--weights", "3,1"], {"weights": (3.0, 1.0)}),
    "weights' opposite": ("weights = [3, 1]", ["--plan", "p.json"], {"plan": Path("p.json")}),
    "epochs' opposite": ("epochs = 3", ["--steps", "5"], {"steps": 5}),
    "steps' opposite": ("steps = 3", ["--epochs", "5"], {"epochs": 5}),
    "a profile's opposite": (
        'weights = "auto"\nprofile = "p.json"',
        ["--profiles", "all"],
        {"weights": "auto", "profiles": Path("all")},
    ),
    "a profile without what it is for": (
        'weights = "auto"\nprofile = "p.json"',
        ["--weights", "3,1"],
        {"weights": (3.0, 1.0)},
    ),
    "a switch off": ("strict = true", ["--no-strict"], {"strict": False}),
    "a switch on": ("strict = false", ["--strict"], {"strict": True}),
    "a switch left": ("strict = true", [], {"strict": True}),
    "a no without its no": ("", ["--no-shared-memory"], {"no_shared_memory": True}),
    "options one by one": (
        "[optimizer_options]\nnesterov = true\neps = 1e-8",
        ["--optimizer-option", "eps=0.1", "--optimizer-option", "betas=[0.9, 0.99]"],
        {"optimizer_options": {"nesterov": True, "eps": 0.1, "betas": [0.9, 0.99]}},
    ),
    "options left": ("[optimizer_options]\nx = 1", ["--lr", "1"], {"optimizer_options": {"x": 1}}),
}


@pytest.mark.parametrize("case", OVER)
def test_flags_win_over_the_file_and_over_their_opposites_in_it(config_file, case):
    text, flags, expected = OVER[case]
    path = config_file(f'model = "digits"\ndata = "digits"\n{text}')
    config, note = flags_given("--config", path, *flags)
    assert config == train_config(**{**BASE, "lr": config.lr, **expected})
    assert note == ""


def test_flags_that_contradict_each_other_stay_so(config_file):
    path = config_file("steps = 3")
    with pytest.raises(HetmpError, match="epochs and steps"):
        flags_given(*TRAIN[1:], "--config", path, "--epochs", 1, "--steps", 1)
    assert flags_over({"steps": 3}, {}) == {"steps": 3}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("0.9", 0.9),
        ("3", 3),
        ("[0.9, 0.99]", [0.9, 0.99]),
        ('"true"', "true"),
        ("word", "word"),
        ("", ""),
        ("a=b", "a=b"),
        ("1\nmore = 2", "1\nmore = 2"),
        ("2026-01-01", "2026-01-01"),
    ],
)
def test_an_option_of_the_optimizer_is_a_value_of_toml_or_else_text(text, value):
    config, _ = flags_given(*TRAIN[1:], "--optimizer-option", f"it={text}")
    assert config.optimizer_options == {"it": value}


def test_an_option_without_a_value_is_refused():
    for word in ("nesterov", "=3"):
        done = CliRunner().invoke(train_command(), [*TRAIN[1:], "--optimizer-option", word])
        assert isinstance(done.exception, HetmpError)
        assert "is not KEY=VALUE" in str(done.exception)


# --- printed --------------------------------------------------------------------------------------


def test_a_printed_run_is_the_same_run(config_file, tmp_path):
    flags = ["--weights", "70,25,5", "--lr", "1e-5", "--strict", "--optimizer-option", "a=1"]
    text = printed(*TRAIN[1:], *flags, "--out", tmp_path / "x")
    path = config_file(text)
    assert flags_given("--config", path)[0] == flags_given(*TRAIN[1:], *flags, "--out",
        tmp_path / "x")[0]  # fmt: skip
    assert printed("--config", path) == text
    assert "\nlr = 0.5\n" in printed("--config", path, "--lr", 0.5)


def test_a_run_is_printed_once_and_not_started(tmp_path):
    done = hetmp_run(*TRAIN, "--print-config", "--out", tmp_path / "x", ranks=2)
    assert done.returncode == 0, done.stderr
    assert tomllib.loads(done.stdout)["model"] == "digits"
    assert not (tmp_path / "x").exists()


# --- a run's own file -----------------------------------------------------------------------------


def written(folder, config, plan_used=False, versions=None):
    """What a run's file says, and its text."""
    folder.mkdir(exist_ok=True)
    write_run_config(folder, config, plan_used, versions or {}, 3)
    assert [path.name for path in folder.iterdir()] == ["config.toml"]
    path = folder / "config.toml"
    return read_config(path), path.read_text()


def test_a_runs_file_leaves_out_what_belongs_to_the_first_run(tmp_path):
    folder = tmp_path / "x"
    config = train_config(
        **BASE, out=folder, resume="auto", checkpoint_every="5", weights=(3, 1, 1), seed=5
    )
    told, text = written(folder, config)
    assert train_config(**told.fields) == train_config(**BASE, weights=(3, 1, 1), seed=5)
    assert text.startswith("# The settings of a run on 3 ranks.")
    assert "give --out again" in text
    assert '# out = "."' in text
    assert '# checkpoint_every = "5"' in text


@pytest.mark.parametrize(
    "told",
    [
        {"weights": "auto", "profile": "profile.json"},
        {"profiles": "profiles"},
        {"plan": "elsewhere.json"},
    ],
)
def test_a_planned_runs_file_names_the_plan_beside_it(tmp_path, told):
    folder = tmp_path / "x"
    config = train_config(**BASE, out=folder, **told)
    again, text = written(folder, config, plan_used=True)
    assert train_config(**again.fields) == train_config(**BASE, plan=folder / "plan.json")
    assert '\nplan = "plan.json"\n' in text


def test_an_unplanned_runs_file_keeps_its_weights(tmp_path):
    config = train_config(**BASE, weights="auto", profile="p.json")  # on one rank
    told, _ = written(tmp_path / "x", config)
    assert train_config(**told.fields) == train_config(**BASE, weights="auto")


def test_a_runs_paths_are_relative_below_its_folder_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = train_config(**BASE, data_path=Path("x/data"), test_path=Path("other/data"))
    told, text = written(Path("x"), config)
    assert '\ndata_path = "data"\n' in text
    assert f'\ntest_path = "{tmp_path / "other" / "data"}"\n' in text
    assert told.fields["data_path"] == str(Path("x", "data"))


def test_a_path_that_is_no_text_does_not_fail_the_run(tmp_path):
    write_run_config(tmp_path, train_config(**BASE, images_key="\x07\u2028"), False, {}, 1)
    assert read_config(tmp_path / "config.toml").fields["images_key"] == "\x07\u2028"


def test_other_versions_are_told(tmp_path):
    present = present_versions()
    assert present["hetmp"] == hetmp.__version__
    assert {"torch", "mpi4py", "numpy", "h5py", "python"} <= present.keys()
    told, _ = written(tmp_path / "x", train_config(**BASE), versions=present)
    assert told.versions == present
    path = tmp_path / "x" / "config.toml"
    assert differing_versions(path, told.versions) == ""
    path.write_text(path.read_text().replace(f'torch = "{present["torch"]}"', 'torch = "1.0.0"'))
    _, note = flags_given("--config", path)
    assert note == (
        f"{path} was written with torch 1.0.0 (here {present['torch']}): "
        "the loss may differ in its last digits"
    )
    assert "gone 1 (here unknown)" in differing_versions(path, {"gone": "1"})


def losses(folder):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if record["kind"] == "step"]


@pytest.mark.parametrize("ranks", [None, 3])
def test_a_runs_file_repeats_it_with_the_same_losses(tmp_path, ranks):
    first, again = tmp_path / "a", tmp_path / "b"
    flags = ["--steps", 6, "--seed", 7, "--lr", 0.1, "--checkpoint-every", 3]
    if ranks:
        flags += ["--weights", "70,25,5"]
    done = hetmp_run(*TRAIN, *flags, "--out", first, ranks=ranks)
    assert done.returncode == 0, done.stderr
    done = hetmp_run("train", "--config", first / "config.toml", "--out", again, ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert len(losses(first)) == 6
    assert losses(first) == losses(again)
    plain = hetmp_run("train", "--config", first / "config.toml", "--steps", 1, ranks=ranks)
    assert plain.returncode == 0, plain.stderr


# --- the program ----------------------------------------------------------------------------------


def test_a_wrong_file_is_one_message_under_mpirun(config_file):
    path = config_file("batchsize = 3")
    refused(hetmp_run("train", "--config", path, ranks=3), "did you mean 'batch_size'")


def test_a_file_that_one_rank_lacks_is_told_with_the_rank(config_file, tmp_path):
    path = config_file('model = "digits"\ndata = "digits"\nsteps = 1')
    script = tmp_path / "one.sh"
    script.write_text(
        'n=${PMI_RANK:-$OMPI_COMM_WORLD_RANK}; file=$1; [ "$n" = 1 ] && file=$1.gone\n'
        f"exec {sys.executable} -m hetmp.cli train --config $file\n"
    )

    done = subprocess.run(
        [str(MPIRUN), "-n", "2", "sh", str(script), str(path)],
        capture_output=True, text=True, timeout=120, env=environment(),
    )  # fmt: skip
    refused(done, "rank 1: config", "run.toml.gone cannot be read")


def test_submitting_looks_into_the_file_first(config_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refusal(*words):
        with pytest.raises(HetmpError) as caught:
            # Of the group: a command that runs by itself would keep a help option without -h.
            words = ("submit", "train", "--", *words)
            CliRunner().invoke(commands, words, catch_exceptions=False)
        return str(caught.value)

    config_file('model = "digits"\ndata = "digits"\nbatchsize = 3')
    assert "did you mean 'batch_size'" in refusal("--config", "run.toml")
    assert "nowhere.toml cannot be read" in refusal("--config", "nowhere.toml")
    assert refusal("--model", "digits").startswith("data: give --data NAME")
    assert "did you mean 'cosine'" in refusal(*TRAIN[1:], "--schedule", "cosin")
