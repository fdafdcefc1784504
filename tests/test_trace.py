"""`hetmp trace`: slices that viewers can nest, on one clock, and what was exchanged."""

import gzip
import json
from itertools import pairwise

import pytest

from helpers.running import hetmp_run, refused
from hetmp.cluster import ClockOffset
from hetmp.exchange import Counter
from hetmp.slicing.recording import ExchangePlace
from hetmp.tools.trace.chrome import EXCHANGES, WORK, chrome_trace
from hetmp.tools.trace.rank_part import Exchanged, OnRootsClock, RankPart, Slice, TracedStep

TRACE = ("trace", "--model", "digits", "--data", "digits", "--batch-size", "50")


def slices(document, rank, track=WORK):
    """The slices of a track in the order in which they begin, the longer ones first."""
    found = [
        event
        for event in document["traceEvents"]
        if event["ph"] == "X" and (event["pid"], event["tid"]) == (rank, track)
    ]
    return sorted(found, key=lambda event: (event["ts"], -event["dur"]))


def check_nested(events):
    """Every slice lies within the one that it began in; to the last bit, as viewers sum it up."""
    open_ones = []
    for event in events:
        assert event["dur"] >= 0
        while open_ones and event["ts"] >= open_ones[-1]["ts"] + open_ones[-1]["dur"]:
            open_ones.pop()
        if open_ones:
            end = open_ones[-1]["ts"] + open_ones[-1]["dur"]
            assert event["ts"] + event["dur"] <= end, (event, open_ones[-1])
        open_ones.append(event)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_trace_of_a_real_run(tmp_path, ranks):
    path = tmp_path / "trace.json"
    weights = ("--weights", "70,25,5") if ranks == 3 else ()
    done = hetmp_run(*TRACE, *weights, "--steps", 2, "--out", path, ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert f"wrote {path}: 2 steps on" in " ".join(done.stdout.split())
    document = json.loads(path.read_text())
    named = {
        event["pid"]: event["args"]["name"]
        for event in document["traceEvents"]
        if event["name"] == "process_name"
    }
    assert list(named) == list(range(ranks))
    if ranks == 3:
        assert named[0].startswith("rank 0: ") and named[0].endswith("71 % of the channels")
    for rank in range(ranks):
        work = slices(document, rank)
        check_nested(work)
        names = [event["name"] for event in work]
        assert [name for name in names if name.startswith("step")] == ["step 2", "step 3"]
        for phase in ("reading", "start", "forward", "loss", "agreeing", "optimizer"):
            assert names.count(phase) == 2
        convolved = [event for event in work if event["name"] == "features.conv2"]
        assert {event["cat"] for event in convolved} >= {"forward", "backward"}
        assert bool(slices(document, rank, EXCHANGES)) == (ranks > 1)


def test_exchanges_are_told_alike_on_all_ranks(tmp_path):
    path = tmp_path / "trace.json.gz"
    done = hetmp_run(*TRACE, "--weights", "3,2,1", "--out", path, "--quiet", ranks=3)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    document = json.loads(gzip.decompress(path.read_bytes()))
    told = [slices(document, rank, EXCHANGES) for rank in range(3)]
    for events in zip(*told, strict=True):
        assert len({event["name"] for event in events}) == 1
        assert len({event["args"]["last_to_arrive"] for event in events}) == 1
        assert [event["args"]["partners"] for event in events] == [[1, 2], [0, 2], [0, 1]]
        last = events[0]["args"]["last_to_arrive"]
        assert events[last]["ts"] == max(event["ts"] for event in events)
        assert events[last]["args"]["waited_ms"] == 0
    # An Allgatherv of the first layer's output: each rank gets what the others have.
    first = [events[0]["args"] for events in told]
    assert sum(args["bytes_received"] for args in first) == 2 * 50 * 24 * 4 * 4 * 4
    assert {args["direction"] for events in told for args in (e["args"] for e in events)} == {
        "forward",
        "backward",
    }
    assert document["otherData"]["ranks"] == 3


def test_more_steps_than_an_epoch_has_and_a_run_in_a_file(tmp_path):
    run = tmp_path / "run.toml"
    run.write_text(
        'model = "digits"\ndata = "digits"\nbatch_size = 700\nout = "runs/x"\n'
        'checkpoint_every = "1epoch"\n'
    )
    path = tmp_path / "trace.json"
    done = hetmp_run("trace", "--config", run, "--steps", 4, "--skip", 0, "--out", path)
    assert done.returncode == 0, done.stderr
    names = [event["name"] for event in slices(json.loads(path.read_text()), 0)]
    assert [name for name in names if name.startswith("step")] == [f"step {i}" for i in range(4)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.toml", "trace.json"]


def test_a_rank_that_a_plan_leaves_out_is_not_in_the_trace(tmp_path):
    plan, path = tmp_path / "plan.json", tmp_path / "trace.json"
    counts = [("features.conv1", 24), ("features.conv2", 48), ("classifier.fc", 10)]
    layers = [
        {"name": name, "kind": "Conv2d", "channels": size, "counts": [0, size - 3, 3]}
        for name, size in counts
    ]
    document = {"format": "hetmp-plan", "version": 2, "ranks": 3, "left_out": [0]}
    plan.write_text(json.dumps(document | {"layers": layers}))
    done = hetmp_run(*TRACE, "--plan", plan, "--out", path, ranks=3)
    assert done.returncode == 0, done.stderr
    traced = json.loads(path.read_text())
    assert {event["pid"] for event in traced["traceEvents"]} == {0, 1}
    assert "on 2 ranks" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--out", "no/such/folder/trace.json"), ["no/such/folder is not a folder"]),
        (("--steps", 0), ["--steps", "0"]),
        (("--model", "digit"), ["digit", "digits"]),
    ],
)
def test_what_cannot_be_traced_is_refused_by_one_rank(flags, words):
    refused(hetmp_run(*TRACE, *flags, ranks=2), *words)


def test_a_trace_that_cannot_be_written_leaves_no_part_of_it(tmp_path):
    path = tmp_path / "trace.json"
    path.mkdir()
    refused(hetmp_run(*TRACE, "--out", path, ranks=2), "trace.json")
    assert list(tmp_path.iterdir()) == [path]


def test_a_clock_that_drifts_is_told_in_rank_0s_time():
    clock = OnRootsClock((10.0, ClockOffset(2.0, 1e-6)), (20.0, ClockOffset(2.5, 3e-6)))
    assert [clock(at) for at in (10.0, 15.0, 20.0)] == [8.0, 12.75, 17.5]
    assert clock.error == 3e-6


def made_up(arrivals, length=0.010):
    """A step of one exchange, which ends for all when the last has come; some awkward times."""
    ended = max(arrivals) + 1 / 3000
    parts = []
    for arrived in arrivals:
        exchange = Exchanged(
            place=0, turn=0, spans=((arrived, arrived + 1e-5), (arrived + 2e-5, ended)), bytes=8
        )
        bounds = [0.0, arrived, ended, length]
        done = [
            Slice(title=title, part=part, layer="", began=began, ended=end)
            for (began, end), title, part in zip(
                pairwise(bounds), ("conv", "exchange", "loss"), ("forward", "forward", "phase"),
                strict=True,
            )
        ]  # fmt: skip
        step = TracedStep(
            reading=-1e-3, began=0.0, ended=length, slices=tuple(done), exchanges=(exchange,)
        )
        parts.append(RankPart(clock_error=0.0, steps=(step,)))
    return parts


def test_a_rank_waits_until_the_last_one_comes():
    places = [ExchangePlace("conv", "conv", "Allgatherv", "forward", Counter())]
    arrivals = (0.001, 0.002, 0.0070001)
    document = chrome_trace(made_up(arrivals), places, ["a", "b", "c"], 0, {})
    for rank, arrived in enumerate(arrivals):
        work = slices(document, rank)
        check_nested(work)
        waiting = [event for event in work if event["cat"] == "waiting"]
        assert {event["name"] for event in waiting} == (
            {"waiting for rank 2"} if rank < 2 else set()
        )
        # Between beginning and finishing it, the rank did something else.
        expected = 0 if rank == 2 else max(arrivals) - arrived - 1e-5
        assert sum(event["dur"] for event in waiting) == pytest.approx(1e6 * expected, abs=0.5)
        (exchange,) = slices(document, rank, EXCHANGES)
        assert exchange["args"]["last_to_arrive"] == 2
        assert exchange["args"]["waited_ms"] == pytest.approx(1e3 * expected, abs=1e-3)
