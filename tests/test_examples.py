"""The programs of examples/ on real ranks: what they find, by what they print."""

import json
import re

import h5py
import pytest

from helpers.documented import ROOT
from helpers.running import hetmp_run

EXAMPLES = ROOT / "examples"


def said(name, *arguments, ranks=3):
    """The lines that an example prints: those of rank 0 alone."""
    program = ("-m", "mpi4py", str(EXAMPLES / f"{name}.py"))
    done = hetmp_run(*arguments, module=program, ranks=ranks, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(("ranks", "filters"), [(3, "(13, 7, 4)"), (1, "(24,)")])
def test_own_loop(ranks, filters):
    shares, losses, merged = said("own_loop", ranks=ranks)
    assert shares == f"filters of 'inner' by rank: {filters}"
    in_slices, unsliced = map(float, re.findall(r"\d\.\d+", losses))
    assert in_slices == pytest.approx(unsliced, abs=2e-6)
    assert in_slices < 0.5
    assert merged == "13 tensors of the merged state_dict equal the unsliced network's"


def test_own_operator():
    unequal, with_nothing = said("own_operator")
    assert (
        unequal == "channels and thresholds by rank (7, 3, 2): the step is the unsliced network's"
    )
    assert "(12, 0, 0)" in with_nothing


def test_plan_and_train(tmp_path):
    folder = tmp_path / "planned"
    planned, losses, loaded = said("plan_and_train", folder)
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["ranks"] == 3
    held = [sum(layer["counts"][rank] for layer in plan["layers"]) for rank in range(3)]
    assert planned == f"planned channels by rank: {tuple(held)}"
    first, last = map(float, re.findall(r"\d\.\d+", losses))
    assert last < first / 2
    assert loaded == "loaded step 24 in shares (28, 27, 27): same numbers True"
    with h5py.File(folder / "run.h5") as file:
        assert file["model/features.conv1.weight"].shape == (24, 1, 3, 3)


def test_every_example_says_its_problem_its_cost_and_its_command():
    listed = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text()
        for part in ("\nProblem: ", "\nCost: ", f"-m mpi4py examples/{path.name}"):
            assert part in text, (path.name, part)
        assert path.name in listed
