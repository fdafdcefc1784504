"""Recorded steps: nothing changes by it, no second is lost, and all ranks tell of the same."""

import pytest
import torch
from torch import nn

import hetmp
from helpers.saving import network, optimizer, sliced, steps, uneven, world
from hetmp.slicing import Tuning
from hetmp.slicing.recording import FirstSteps, Recorder, layer_times
from hetmp.slicing.recording.memory import memory_held
from hetmp.slicing.recording.recorder import PHASES, computed

DEVICE = torch.device("cpu")
SCHEMES = {"3": "inputs", "6": "whole"}
TUNINGS = (Tuning(), Tuning(overlap=False), Tuning(regather=True), Tuning(shared_memory=False))


def across() -> nn.Module:
    """Norms that exchange within the layer, and a parameter that every rank holds."""
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.GroupNorm(2, 12),
        nn.PReLU(),
        nn.Conv2d(12, 6, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    ).double()


def record(model, recorder, count, *, begin=0, opt=None):
    recorded = []
    opt = opt or optimizer("sgd", model)
    for number in range(begin, begin + count):
        with recorder.step(recorded):
            steps(model, opt, number, number + 1)
    return recorded


@pytest.mark.mpi
@pytest.mark.parametrize("tuning", TUNINGS, ids=("usual", "no-overlap", "regather", "plain"))
def test_a_recorded_step_gives_the_same_to_the_last_bit(tuning):
    seen, unseen = (sliced(world(), uneven(world().size), SCHEMES) for _ in range(2))
    for model in (seen, unseen):
        model.hetmp.tuning = tuning
    torch.manual_seed(5)
    record(seen, Recorder(seen, DEVICE), 3)
    torch.manual_seed(5)
    steps(unseen, optimizer("sgd", unseen), 0, 3)
    for ours, theirs in zip(seen.parameters(), unseen.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.mpi
@pytest.mark.parametrize("tuning", TUNINGS, ids=("usual", "no-overlap", "regather", "plain"))
@pytest.mark.parametrize("build", [network, across])
def test_no_second_is_lost_or_counted_twice(build, tuning):
    model = hetmp.slice_model(build(), uneven(world().size), world(), tuning=tuning)
    for one in record(model, Recorder(model, DEVICE), 2):
        exchanging = sum(meeting.seconds for meeting in one.meetings)
        computing = computed(one)
        assert min(computing.values()) >= 0
        assert sum(computing.values()) + exchanging == pytest.approx(one.ended - one.began)
        assert all(
            done.ended == following.began
            for done, following in zip(one.done, one.done[1:], strict=False)
        )


@pytest.mark.mpi
@pytest.mark.parametrize("build", [network, across])
def test_all_ranks_tell_of_the_same_exchanges(build):
    model = hetmp.slice_model(build(), uneven(world().size), world())
    recorder = Recorder(model, DEVICE)
    (one,) = record(model, recorder, 1)
    # Where nothing moves, a rank with no channels has nothing to do, either.
    told = [
        (meeting.place, len(meeting.spans))
        for meeting in one.meetings
        if recorder.places[meeting.place].collective != "-"
    ]
    assert world().allgather(told) == [told] * world().size
    assert bool(told) == (world().size > 1)
    assert recorder.layers == ("", *(layer.name for layer in model.hetmp.plan.layers))


@pytest.mark.mpi
def test_the_bytes_are_those_of_the_counters():
    model = hetmp.slice_model(across(), uneven(world().size), world())
    recorder = Recorder(model, DEVICE)
    before = [place.counter.bytes for place in recorder.places]
    recorded = record(model, recorder, 3)
    counted = [p.counter.bytes - had for p, had in zip(recorder.places, before, strict=True)]
    for number, size in enumerate(counted):
        met = [m for one in recorded for m in one.meetings if m.place == number]
        assert sum(meeting.bytes for meeting in met) == size
    told = layer_times(model.hetmp.group, recorder, recorded)["exchanges"]
    whole = sum(exchange["bytes"][world().rank] for exchange in told)
    assert 3 * whole == sum(counted)
    if world().size > 1:  # the norm's own exchange counts to the layer in front of it
        norms = [exchange for exchange in told if exchange["name"] == "1"]
        assert {exchange["direction"] for exchange in norms} == {"forward", "backward"}


@pytest.mark.mpi
def test_layer_by_layer_on_every_rank_the_same():
    model = sliced(world(), uneven(world().size))
    recorder = Recorder(model, DEVICE)
    found = layer_times(model.hetmp.group, recorder, record(model, recorder, 3))
    assert world().allgather(found) == [found] * world().size
    assert [layer["name"] for layer in found["layers"]] == ["", "0", "3", "6", "9"]
    assert tuple(found["rest"]) == PHASES
    for layer in found["layers"]:
        assert len(layer["forward"]) == len(layer["waiting"]) == world().size
        assert min(*layer["forward"], *layer["backward"], *layer["waiting"]) >= 0
    for exchange in found["exchanges"]:
        # The last to come does not wait, step by step; the medians may hide who that was.
        assert exchange["exchange"] >= 0 and min(exchange["waiting"]) >= 0
        assert exchange["calls"] == 1
    assert {exchange["name"] for exchange in found["exchanges"]} == (
        {"3", "6", "9"} if world().size > 1 else set()
    )


@pytest.mark.mpi
@pytest.mark.parametrize("parts", [1, 2])
def test_the_layers_of_a_step_in_parts(parts):
    """A step may take its batch in parts: each has its forward and backward pass."""
    model = sliced(world(), uneven(world().size))
    recorder = Recorder(model, DEVICE)
    recorded = []
    with recorder.step(recorded, memory=True):
        for _ in range(parts):
            model(torch.ones(2, 3, 8, 8, dtype=torch.float64)).square().sum().backward()
    (one,) = recorded
    convolved = [done.part for done in one.done if recorder.title(done.name) == "0"]
    assert convolved.count("forward") == parts
    if model.hetmp.plan.held[world().rank]:
        assert convolved.count("backward") == parts
        assert one.saved > 0


@pytest.mark.mpi
def test_a_step_that_fails_is_not_recorded_and_leaves_nothing_on():
    model = sliced(world(), uneven(world().size))
    recorder, recorded = Recorder(model, DEVICE), []
    with pytest.raises(ZeroDivisionError), recorder.step(recorded):
        raise ZeroDivisionError
    assert recorded == [] and model.hetmp.watch is None
    assert all(place.counter.log is None for place in recorder.places)


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_what_is_held_sums_up_to_what_one_process_holds(name):
    model = sliced(world(), uneven(world().size), SCHEMES)
    opt = optimizer(name, model)
    steps(model, opt, 0, 1)
    found = memory_held(model, opt, DEVICE, activations=7 * world().rank, before=1)
    assert world().allgather(found) == [found] * world().size
    alone = network()
    theirs = optimizer(name, alone)
    steps(alone, theirs, 0, 1)
    sizes = [parameter.numel() * parameter.element_size() for parameter in alone.parameters()]
    assert found["whole"]["parameters"] == found["whole"]["gradients"] == sum(sizes)
    held = [t for state in theirs.state.values() for t in state.values() if torch.is_tensor(t)]
    # AdamW counts its steps once for each parameter, sliced or not, on each rank.
    counters = 4 * len(sizes) if name == "adamw" else 0
    own = sum(t.numel() * t.element_size() for t in held) - counters
    assert own <= found["whole"]["optimizer"] <= own + counters * world().size
    assert sum(found["share"]) == pytest.approx(1, abs=1e-5)
    assert found["activations"] == [7 * rank for rank in range(world().size)]
    assert max(found["parameters"]) <= found["whole"]["parameters"]
    assert all(most > 0 for most in found["peak"])


@pytest.mark.parametrize(
    ("wanted", "left", "first", "timed"),
    [(5, 20, 2, 5), (5, 4, 2, 2), (5, 3, 1, 2), (5, 2, 1, 1), (5, 1, 0, 1), (1, 9, 2, 1)],
)
def test_which_steps_are_looked_at(wanted, left, first, timed):
    model = hetmp.slice_model(network(), [1.0], None)
    opt = optimizer("sgd", model)
    looked = FirstSteps(model, wanted, left, DEVICE, before=0)
    found = []
    for number in range(left):
        with looked.step():
            steps(model, opt, number, number + 1)
        found.append(looked.due_records(opt, number + 1, 4))
    due = [number for number, records in enumerate(found) if records]
    assert due == [first + timed - 1]
    records = found[due[0]]
    assert list(records) == ["layers", "memory"]
    assert {name: records["layers"][name] for name in ("first", "steps", "images")} == {
        "first": first,
        "steps": timed,
        "images": 4,
    }
    assert records["memory"]["activations"][0] > 0


def test_no_step_is_looked_at_where_none_is_wanted():
    model = hetmp.slice_model(network(), [1.0], None)
    looked = FirstSteps(model, 0, 10, DEVICE, before=0)
    with looked.step():
        assert model.hetmp.watch is None
    assert looked.due_records(optimizer("sgd", model), 1, 4) == {}
