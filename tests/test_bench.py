"""``hetmp bench``: what it measures and how it compares; how fast anything is, is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import hetmp
from helpers.comparison import batch, rank_loss, seeded
from helpers.running import hetmp_run, refused
from hetmp import models
from hetmp.cluster.slowdown import Slowdown
from hetmp.core.errors import HetmpError
from hetmp.tools.bench import BenchConfig, BenchResult, bench, rows, summary
from hetmp.tools.bench.config import DATA_PARALLEL, ONE_PROCESS, SLICED, TUNINGS, VARIANTS
from hetmp.tools.bench.data_parallel import data_parallel, process_group

FIGURE = Path(__file__).resolve().parents[1] / "benchmarks" / "figure.py"


def config(ranks: int, **changes) -> BenchConfig:
    usual = {
        "model": "digits",
        "input_shape": (1, 8, 8),
        "classes": 10,
        "weights": (1.0,) * ranks,
        "batch_size": 2 * ranks,
        "repeats": 1,
    }
    return BenchConfig(**(usual | changes))


def measured(**changes) -> BenchResult:
    """Of two ranks."""
    values = {
        "config": config(2),
        "seconds": {
            "sliced": [0.3, 0.1, 0.2],
            "sliced again": [0.2, 0.1, 0.3],
            "floor": [0.1, 0.1, 9.0],
            "one process, NCHW": [0.4] * 3,
            "one process, channels_last": [0.25] * 3,
        },
        "exchange": {"sliced": [0.01, 0.02], "plain exchange": [0.04, 0.02]},
        "threads": (1, 2),
    }
    return BenchResult(**(values | changes))


def test_medians_are_compared():
    result = measured()
    assert result.median("sliced") == 0.2
    assert result.ratio("floor") == pytest.approx(2.0)
    assert result.ratio("sliced", of="floor") == pytest.approx(0.5)
    assert [(row[0], row[1], row[3], row[4]) for row in rows(result)] == [
        ("sliced", "200.0", "", ""),
        ("sliced again", "200.0", "1.000", ""),
        ("floor", "100.0", "2.000", ""),
        ("one process, NCHW", "400.0", "0.500", ""),
        ("one process, channels_last", "250.0", "0.800", ""),
    ]


def test_the_summary_names_the_limit_and_compares_exchanges():
    assert [" ".join(line.split()) for line in summary(measured(left_out={"floor": "why"}))] == [
        "sliced / this: above 1, this variant is faster than sliced",
        "sliced again / sliced: 1.000",
        "sliced / the faster one process: 0.800, one process, channels_last",
        "exchange, packing and waiting (the floor only waits), ms a step:",
        "in all by rank",
        "sliced 30.0 10.0 20.0",
        "plain exchange 60.0 40.0 20.0",
        "sliced / plain exchange 0.500 0.250 1.000",
        "left out: floor: why",
    ]


def test_nothing_is_compared_with_what_was_not_measured():
    result = measured(seconds={"floor": [0.1]}, exchange={})
    assert rows(result) == [("floor", "100.0", "100.0–100.0", "", "")]
    assert summary(result) == []


def test_intervals_are_paired_by_turn():
    turns = [0.1, 0.5, 0.2, 0.9, 0.3, 0.4, 0.7]
    result = measured(seconds={"sliced": turns, "floor": [t / 2 for t in turns]})
    assert result.interval("floor") == pytest.approx((2.0, 2.0))
    assert rows(result)[1][4] == "2.000–2.000"
    low, high = measured(seconds={"sliced": turns, "floor": [0.4] * 7}).interval("floor")
    assert low < 1.0 < high


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, [*SLICED, *ONE_PROCESS]),
        ({"data_parallel": True}, [*SLICED, *ONE_PROCESS, *DATA_PARALLEL]),
        ({"only": VARIANTS}, list(VARIANTS)),
        ({"slowdown": (1.0, 2.0)}, list(SLICED)),
        ({"slowdown": (1.0, 2.0), "data_parallel": True}, [*SLICED, *DATA_PARALLEL]),
        ({"only": ("floor", "sliced")}, ["sliced", "floor"]),
        ({"only": ("data parallel",)}, ["data parallel"]),
        ({"only": ("batch:6", "data parallel", "batch", "floor")},
         ["floor", "batch:6", "batch", "data parallel"]),
    ],
)  # fmt: skip
def test_which_variants_are_asked_for(changes, names):
    assert config(2, **changes).variants() == names


@pytest.mark.parametrize(
    ("only", "base"),
    [
        (None, "sliced"),
        (("batch", "filters", "sliced"), "sliced"),
        (("floor", "batch", "filters"), "batch"),
        (("floor", "data parallel"), None),
    ],
)
def test_what_the_others_are_compared_with(only, base):
    assert config(2, only=only).base() == base


def test_cuts_are_compared_with_the_first_of_them():
    seconds = {"floor": [0.1], "batch": [0.2], "filters": [0.4]}
    asked = config(2, only=("filters", "batch", "floor"))
    received = {"filters": (2048, 1024), "batch": (0, 0)}
    result = measured(config=asked, seconds=seconds, exchange={}, received=received)
    assert [row[3] for row in rows(result)] == ["4.000", "2.000", ""]
    assert [" ".join(line.split()) for line in summary(result)] == [
        "filters / this: above 1, this variant is faster than filters",
        "filters: received a step 3 KiB 2 KiB 1 KiB",
    ]


@pytest.mark.mpi
@pytest.mark.parametrize("slowed", [False, True])
def test_every_variant_is_measured_on_every_turn(slowed):
    group = hetmp.Group()
    slowdown = tuple(1.0 + rank / 10 for rank in range(group.size)) if slowed else None
    asked = config(group.size, repeats=2, data_parallel=True, slowdown=slowdown)
    result = bench(asked)
    assert list(result.seconds) == asked.variants()
    assert all(len(turns) == 2 and min(turns) > 0 for turns in result.seconds.values())
    assert list(result.exchange) == list(SLICED)
    assert all(len(seconds) == group.size for seconds in result.exchange.values())
    assert not result.left_out
    assert not torch.distributed.is_initialized()


@pytest.mark.mpi
def test_every_tuning_is_a_variant():
    result = bench(config(hetmp.Group().size, only=tuple(TUNINGS)))
    assert list(result.seconds) == list(result.exchange) == list(TUNINGS)


@pytest.mark.mpi
def test_cuts_take_turns_with_the_sliced_model(tmp_path):
    ranks = hetmp.Group().size
    graph = hetmp.read_graph(models.build("digits", (1, 8, 8), 10))
    alone = hetmp.plan_from_weights(graph, [1.0]).spread([ranks - 1], ranks)
    plan, schemes = (f"{tmp_path}/{name}.json" for name in ("plan", "schemes"))
    alone.save(plan)
    Path(schemes).write_text(json.dumps({layer.name: "batch" for layer in alone.layers}))
    result = bench(config(ranks, only=("batch", plan, schemes, "filters", "sliced")))
    assert list(result.seconds) == ["sliced", "batch", plan, schemes, "filters"]
    assert list(result.exchange) == list(result.seconds)
    assert result.received["filters"] == result.received["sliced"]
    assert result.received["batch"] == result.received[schemes]
    assert result.received[plan] == (0,) * ranks
    if ranks > 1:
        assert result.received["batch"] != result.received["sliced"]
        assert any(result.exchange["batch"])
    assert not any(result.exchange[plan])


@pytest.mark.mpi
def test_a_plan_for_another_network_is_refused(tmp_path):
    ranks = hetmp.Group().size
    graph = hetmp.read_graph(models.build("digits", (1, 8, 8), 10))
    own = hetmp.plan_from_weights(graph, [1.0] * ranks)
    file = f"{tmp_path}/plan.json"
    own.model_copy(update={"fingerprint": "other"}).save(file)
    with pytest.raises(HetmpError, match="the plan was made for another model"):
        bench(config(ranks, only=(file,)))
    hetmp.plan_from_weights(graph, [1.0] * (ranks + 1)).save(file)
    with pytest.raises(HetmpError, match=f"the plan is for {ranks + 1} ranks"):
        bench(config(ranks, only=(file,)))


@pytest.mark.mpi(min_size=2)
def test_what_cannot_run_is_left_out():
    ranks = hetmp.Group().size
    weights = (1.0,) * (ranks - 1) + (0.0,)
    only = ("sliced", "data parallel, weighted")
    result = bench(config(ranks, weights=weights, only=only))
    assert list(result.seconds) == ["sliced"]
    assert result.left_out == {only[1]: f"rank {ranks - 1} gets none of the {2 * ranks} images"}
    with pytest.raises(HetmpError, match="nothing is left to measure: data parallel: rank 1"):
        bench(config(ranks, batch_size=1, only=("data parallel",)))


@pytest.mark.mpi
def test_the_average_of_unequal_batches_is_the_gradient_of_the_whole_one():
    group = hetmp.Group()
    whole = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5)))
    counts = list(range(1, group.size + 1))
    x = batch((sum(counts), 3, 4, 4))
    labels = torch.arange(sum(counts)) % 5
    nn.functional.cross_entropy(whole(x), labels).backward()
    for slowdown in (None, CountingSlowdown()):
        with process_group(group):
            model, part, scale = data_parallel(group, whole, counts, slowdown)
            (scale * nn.functional.cross_entropy(model(x[part]), labels[part])).backward()
        for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)
    assert slowdown.slept > 0


class CountingSlowdown(Slowdown):
    """Counts where it would sleep."""

    slept = 0

    def worked(self) -> None:
        self.slept += 1


@pytest.mark.mpi(min_size=2)
def test_a_rehearsal_moves_nothing_and_changes_nothing_afterwards():
    module = seeded(lambda: models.build("resnet18", (3, 8, 8), 5, width=0.1))
    model = hetmp.slice_model(module, [1.0] * hetmp.Group().size)
    group, x = model.hetmp.group, batch((2, 3, 8, 8))
    counters = [e.forward_counter for e in model.hetmp.exchanges]
    with group.rehearsed():
        rank_loss(model(x), group.rank).backward()
    assert sum(counter.bytes for counter in counters) == 0
    assert all(counter.calls == 1 for counter in counters)
    other = hetmp.slice_model(module, [1.0] * group.size).eval()
    torch.testing.assert_close(other(x), module.eval()(x), rtol=1e-10, atol=1e-12)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"repeats": -1}, "repeats must be 1 or more, got -1"),
        ({"slowdown": (0.5,)}, "slowdown .* one per rank, 1 or more each"),
        ({"model": "digit"}, "unknown model 'digit': did you mean 'digits'"),
        ({"weights": (1.0,) * 9}, r"9 weights .* ranks?"),
        ({"only": ("flor",)}, "unknown variant 'flor': did you mean 'floor'"),
        ({"only": ("bacth",)}, "unknown variant 'bacth': did you mean 'batch'.* FILE of a plan or"),
        ({"only": ("batch:9",)}, "the model has 3 layers that mix channels: give K from 0 to 3"),
        ({"only": ("no/plan.json",)}, "there is no file no/plan.json of a plan or of schemes"),
        ({"seconds": 0.0}, "seconds must be above 0, got 0"),
        ({"seconds": 1e-9}, r"1e-09 s, was over in warm-up turn 1 of 3, .*: give several times"),
    ],
)
def test_what_cannot_be_measured(changes, named):
    with pytest.raises(HetmpError, match=named):
        bench(config(hetmp.Group().size, **changes))


def test_one_process_is_not_slowed():
    with pytest.raises(HetmpError, match=r"'one process, NCHW' .* full speed. Choose other"):
        config(2, slowdown=(1.0, 2.0), only=("one process, NCHW",)).check(2)


def test_the_command_says_what_it_measured_and_keeps_it(tmp_path):
    file = tmp_path / "results.jsonl"
    small = ("bench", "digits", "--batch-size", 4, "--repeats", 1)
    done = hetmp_run(*small, "--append", file, ranks=2)
    assert done.returncode == 0, done.stderr
    assert "digits, batch 4 of 1×8×8, weights 1,1; threads: 1 a rank, " in done.stdout
    for variant in (*SLICED, *ONE_PROCESS, "sliced / the faster one process: "):
        assert variant in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80 + len(str(tmp_path))
    only = ("--only", "floor,sliced", "--slowdown", "1,2")
    done = hetmp_run(*small, *only, "--append", file, ranks=2)
    assert "ranks slowed on purpose by 1, 2" in done.stdout
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    assert first["command"].startswith("hetmp bench digits --batch-size 4")
    assert (first["ranks"], first["threads"]["a rank"]) == (2, 1)
    assert list(first["seconds"]) == [*SLICED, *ONE_PROCESS]
    assert {len(seconds) for seconds in first["exchange"].values()} == {2}
    assert all(first["host"].values())
    assert all(first["versions"].values())
    assert list(second["seconds"]) == ["sliced", "floor"]
    assert second["config"]["slowdown"] == [1, 2]


def test_the_command_refuses_before_it_measures(tmp_path):
    refused(hetmp_run("bench", "digit"), "unknown model 'digit'")
    refused(hetmp_run("bench", "own_network:build"), "--shape", "--classes")
    missing = hetmp_run("bench", "digits", "--append", tmp_path / "no" / "a.jsonl", ranks=2)
    refused(missing, f"{tmp_path / 'no'} is not a folder", "make it before writing a.jsonl")
    refused(hetmp_run("bench", "digits", "--append", tmp_path), "cannot write to", "another file")


def test_a_network_with_scores_for_places_is_measured():
    shaped = ("--shape", "3,16,16", "--batch-size", 2, "--repeats", 1, "--only", "floor")
    done = hetmp_run("bench", "unet", *shaped)
    assert done.returncode == 0, done.stderr


def test_results_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    results, picture = tmp_path / "results.jsonl", tmp_path / "picture.png"
    runs = [
        {"config": config(2, slowdown=slowdown).__dict__, "ranks": 2, "seconds": seconds}
        for slowdown, seconds in ((None, measured().seconds), ([1, 3], {"floor": [0.1]}))
    ]
    results.write_text("".join(json.dumps(run) + "\n" for run in runs))
    done = subprocess.run([sys.executable, FIGURE, results, picture], check=False)
    assert done.returncode == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
