"""The loop with an optimizer, a scaler and averages that docs/library.md shows."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import hetmp
from helpers.comparison import WEIGHTS, world_size
from helpers.optimizing import IMAGES, network

pytestmark = pytest.mark.mpi

PAGE = Path(__file__).resolve().parents[1] / "docs" / "library.md"


def test_the_documented_loop_trains():
    section = PAGE.read_text().split("## Optimizers")[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    torch.manual_seed(0)
    model = hetmp.slice_model(network().float(), WEIGHTS["one zero"](world_size()))
    before = hetmp.merge_model(model)
    images, labels = torch.randn(IMAGES), torch.tensor([0, 1, 2, 0])
    criterion, losses = nn.CrossEntropyLoss(), []

    def batches():
        for _ in range(8):
            yield images, labels
            losses.append(float(criterion(model(images), labels).detach()))

    seen = []
    names = {
        "torch": torch,
        "model": model,
        "steps": 8,
        "device": "cpu",
        "dtype": torch.bfloat16,
        "batches": batches(),
        "criterion": criterion,
        "evaluate": lambda model: seen.append(hetmp.merge_model(model)),
    }
    exec(block, names)
    after = hetmp.merge_model(model)
    assert losses[-1] < losses[0]
    assert not torch.equal(after["0.weight"], before["0.weight"])
    assert not torch.equal(seen[0]["0.weight"], after["0.weight"])
    assert names["averages"].updates == 8
    assert names["optimizer"].param_groups[0]["lr"] == 0
