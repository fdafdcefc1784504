"""The README's and the docs' Python runs as it is written."""

import re
from functools import cache
from pathlib import Path

import h5py
import pytest
import torch

from test_cli import TRAIN, hetmp_run

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


@cache
def flags(command: str) -> set[str]:
    done = hetmp_run(command, "--help")
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"--[a-z-]+", done.stdout))


@pytest.mark.parametrize("ranks", [1, 4])
def test_the_readmes_training_loop_runs(tmp_path, ranks):
    program = tmp_path / "train.py"
    loop = next(block for block in python_blocks("README.md") if "slice_model" in block)
    saved = f"torch.save(state, '{tmp_path}/state.pt') if MPI.COMM_WORLD.rank == 0 else None\n"
    program.write_text(loop + saved + "print(model)\n")
    done = hetmp_run(module=("-m", "mpi4py", str(program)), ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("SlicedModel, rank") == ranks
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["4.weight"].shape == (64, 32, 3, 3)


def test_the_documented_ways_to_read_a_trained_network(tmp_path, capfd):
    out = tmp_path / "runs" / "demo"
    assert hetmp_run(*TRAIN, "--steps", 2, "--out", out).returncode == 0
    told: dict[str, object] = {}
    for page in ("README.md", "docs/formats.md", "docs/checkpoint-format.md"):
        for block in python_blocks(page):
            if "h5py.File" in block:
                names: dict[str, object] = {}
                exec(block.replace("runs/demo", str(out)), names)
                told |= names
    assert told["state"].keys() == {  # type: ignore[attr-defined]
        name for part in ("model", "buffers") for name in h5py.File(out / "model.h5").get(part, ())
    }
    assert capfd.readouterr().out.splitlines()[-1].endswith("True")  # the digest


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_documented_way_to_save_in_a_loop_of_ones_own(tmp_path, ranks):
    program = tmp_path / "save.py"
    (block,) = python_blocks("docs/checkpoints.md")
    program.write_text(block.replace("run.h5", str(tmp_path / "run.h5")) + "print(extra)\n")
    done = hetmp_run(module=("-m", "mpi4py", str(program)), ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("{'epoch': 3, 'note': 'before the long run'}") == ranks


@pytest.mark.parametrize(("ranks", "held"), [(1, ["12170"]), (3, ["4760", "3705", "3705"])])
def test_the_documented_start_layer_by_layer(tmp_path, ranks, held):
    program = tmp_path / "layers.py"
    (block,) = python_blocks("docs/larger-than-one-device.md")
    program.write_text(block)
    done = hetmp_run(module=("-m", "mpi4py", str(program)), ranks=ranks)
    assert done.returncode == 0, done.stderr
    # Ranks may print into one line.
    assert sorted(re.findall("12170|4760|3705", done.stdout)) == sorted(held)


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_documented_operators_of_ones_own(tmp_path, ranks):
    program = tmp_path / "operators.py"
    program.write_text("\n".join(python_blocks("docs/operators.md")) + "print('same')\n")
    done = hetmp_run(module=("-m", "mpi4py", str(program)), ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("same") == ranks


@pytest.mark.parametrize(
    "page", ["README.md", "docs/training.md", "docs/larger-than-one-device.md", "docs/formats.md"]
)
def test_the_documented_commands_are_the_programs(page):
    text = (ROOT / page).read_text().replace("\\\n", "")
    commands = re.findall(r"hetmp (train|evaluate|predict) (.*?)(?: +#|\n|`)", text)
    assert commands
    for name, command in commands:
        assert set(re.findall(r"--[a-z-]+", command)) <= flags(name), command


@pytest.mark.parametrize(
    "page", ["docs/training.md", "docs/larger-than-one-device.md", "docs/formats.md"]
)
def test_the_options_that_the_text_names_are_of_some_command(page):
    commands = ("train", "evaluate", "predict", "plan", "submit")
    known = set().union(*map(flags, commands))
    of_others = {"--user", "--scope", "--mem", "--mem-per-cpu"}  # systemd-run, Slurm
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / page).read_text()))
    assert named <= known | of_others, named - known


@pytest.mark.parametrize(
    "page", ["README.md", "data/README.md", *sorted(f"docs/{p.name}" for p in DOCS.glob("*.md"))]
)
def test_links_lead_to_pages_and_headings(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", found.read_text(), flags=re.MULTILINE)
            assert heading in {_anchor(title) for title in titles}, target


def _anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
