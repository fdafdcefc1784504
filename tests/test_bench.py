"""``hetmp bench``: what it measures and how it compares; how fast anything is, is not tested."""

import pytest
import torch

import hetmp
from comparison import batch, rank_loss, seeded
from hetmp import models
from hetmp.bench import BenchConfig, BenchResult, bench, rows
from hetmp.errors import HetmpError
from test_cli import hetmp_run, refused


def config(ranks: int, **changes) -> BenchConfig:
    usual = {
        "model": "digits",
        "input_shape": (1, 8, 8),
        "classes": 10,
        "weights": (1.0,) * ranks,
        "batch_size": 4,
        "repeats": 2,
    }
    return BenchConfig(**(usual | changes))


def test_medians_are_compared():
    seconds = {"sliced": [0.3, 0.1, 0.2], "floor": [0.1, 0.1, 9.0], "one process": [0.4] * 3}
    result = BenchResult(config(2), seconds, [0.01, 0.02], (1, 2))
    assert result.median("sliced") == 0.2
    assert result.ratio("floor") == pytest.approx(2.0)
    assert [(row[0], row[1], row[3]) for row in rows(result)] == [
        ("sliced", "200.0", ""),
        ("floor", "100.0", "2.000"),
        ("one process", "400.0", "0.500"),
    ]


@pytest.mark.mpi
@pytest.mark.parametrize("changes", [{}, {"channels_last": True}, {"slowdown": True}], ids=str)
def test_every_variant_is_measured_on_every_turn(changes):
    group = hetmp.Group()
    if "slowdown" in changes:
        changes = {"slowdown": tuple(1.0 + rank / 10 for rank in range(group.size))}
    result = bench(config(group.size, **changes))
    names = ["sliced", "sliced again", "floor"]
    assert list(result.seconds) == names + ([] if "slowdown" in changes else ["one process"])
    assert all(len(turns) == 2 and min(turns) > 0 for turns in result.seconds.values())
    assert len(result.exchange) == group.size
    assert not group.rehearsing


@pytest.mark.mpi(min_size=2)
def test_a_rehearsal_moves_nothing_and_changes_nothing_afterwards():
    module = seeded(lambda: models.build("resnet18", (3, 8, 8), 5, width=0.1))
    model = hetmp.slice_model(module, [1.0] * hetmp.Group().size)
    group, x = model.hetmp.group, batch((2, 3, 8, 8))
    counters = [e.forward_counter for e in model.hetmp.exchanges]
    group.rehearsing = True
    try:
        rank_loss(model(x), group.rank).backward()
    finally:
        group.rehearsing = False
    assert sum(counter.bytes for counter in counters) == 0
    assert all(counter.calls == 1 for counter in counters)
    other = hetmp.slice_model(module, [1.0] * group.size).eval()
    torch.testing.assert_close(other(x), module.eval()(x), rtol=1e-10, atol=1e-12)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 0}, "batch_size is 1 or more, got 0"),
        ({"repeats": -1}, "repeats is 1 or more, got -1"),
        ({"slowdown": (0.5,)}, "slowdown .* one per rank, 1 or more each"),
        ({"model": "digit"}, "unknown model 'digit': did you mean 'digits'"),
        ({"weights": (1.0,) * 9}, r"9 weights .* ranks?"),
    ],
)
def test_what_cannot_be_measured(changes, named):
    with pytest.raises(HetmpError, match=named):
        bench(config(hetmp.Group().size, **changes))


def test_the_command_says_what_it_measured():
    done = hetmp_run("bench", "digits", "--batch-size", 4, "--repeats", 2, ranks=2)
    assert done.returncode == 0, done.stderr
    assert "digits, batch 4 of 1×8×8, NCHW, weights 1,1; threads: 1 a rank, " in done.stdout
    for variant in ("sliced again", "floor", "one process"):
        assert variant in done.stdout
    done = hetmp_run("bench", "digits", "--repeats", 1, "--slowdown", "1,2", ranks=2)
    assert "ranks slowed on purpose by 1, 2" in done.stdout
    refused(hetmp_run("bench", "digit"), "unknown model 'digit'")
    refused(hetmp_run("bench", "own_network:build"), "--shape", "--classes")
