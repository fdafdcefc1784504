"""The README's and the docs' Python runs as it is written."""

import re
from pathlib import Path

import h5py
import pytest
import torch

from test_cli import TRAIN, hetmp_run

ROOT = Path(__file__).resolve().parents[1]


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


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


def test_the_readmes_commands_are_the_programs():
    text = (ROOT / "README.md").read_text()
    for name, command in re.findall(r"hetmp (train|evaluate) (.*?)(?: +#|\n|`)", text):
        flags = set(re.findall(r"--[a-z-]+", command))
        assert flags <= set(re.findall(r"--[a-z-]+", hetmp_run(name, "--help").stdout)), command
