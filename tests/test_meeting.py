"""The ranks compare the forward passes that they begin: all of them, and before anything moves."""

import contextlib
import copy
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import hetmp
from helpers.comparison import WEIGHTS, batch, compare_training, seeded, world_size
from helpers.refusing import mine, refused
from helpers.works import works
from hetmp.cluster import AgreedError
from hetmp.slicing import same_batch
from hetmp.slicing.runtime import Runtime

IMAGES = (4, 3, 6, 6)

LATER = 5
"""How many passes come before the one in which the ranks part ways."""


def small(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), *more, nn.Conv2d(7, 5, 2)).double()


def sliced(module: nn.Module | None = None, **more) -> hetmp.SlicedModel:
    return hetmp.slice_model(module or small(), WEIGHTS["one zero"](world_size()), **more)


def after(passes: int, model: nn.Module) -> nn.Module:
    for step in range(passes):
        model(batch(IMAGES, step))
    return model


def near(output, expected) -> None:
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("rank", [0, -1])
@pytest.mark.parametrize("training", [True, False])
@works("a batch of another size on one rank, in any pass")
def test_batches_of_unlike_sizes_are_refused_in_every_pass(training, rank):
    """Which is what a rank with another slice of the data gives."""
    model = after(LATER, sliced().train(training))
    text = refused(lambda: model(mine(batch(IMAGES), batch(IMAGES)[:2], rank=rank)))
    other, rank_0s = ((4, 3, 6, 6), (2, 3, 6, 6)) if rank == 0 else ((2, 3, 6, 6), (4, 3, 6, 6))
    who = 1 if rank == 0 else world_size() - 1
    mode = "training" if training else "evaluation"
    assert text.startswith(
        f"forward pass {LATER + 1} in {mode}: rank {who} has a batch of shape {other}, rank 0 of "
        f"shape {rank_0s}: give every rank the same whole batch"
    )
    near(model(batch(IMAGES)), small()(batch(IMAGES)))


@pytest.mark.mpi(min_size=2)
def test_a_refused_pass_leaves_training_as_it_was():
    x = batch(IMAGES)
    model, module = after(LATER, sliced()), small()
    for _ in range(2):
        refused(lambda: model(mine(x, x[:3])))
        for net in (model, module):
            net(x).square().mean().backward()
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.sub_(parameter.grad, alpha=0.1)
                    parameter.grad = None
    whole = hetmp.merge_model(model)
    for name, value in module.state_dict().items():
        near(whole[name], value)


@pytest.mark.mpi(min_size=2)
@works("a batch that is smaller on all ranks, as the last of an epoch")
def test_batches_may_change_their_size_from_pass_to_pass():
    model, module = sliced(), small()
    for images in (4, 1, 3, 4, 2):
        x = batch((images, *IMAGES[1:]))
        near(model(x), module(x))


class Pair(nn.Module):
    """Two images and a mask that nobody looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = small(), small()

    def forward(self, x, y, mask=None):
        return self.a(x) + self.b(y)


@pytest.mark.mpi(min_size=2)
def test_an_input_of_several_is_named():
    x = batch(IMAGES)
    model = sliced(Pair(), example_input=(x, x, torch.zeros(3)))
    for _ in range(LATER):
        model(x, x, torch.zeros(3))
    for shape in ((4, 3, 6, 5), (1,) * 12):
        text = refused(lambda shape=shape: model(x, x, torch.zeros(mine((3,), shape))))
        assert re.search(rf"rank \d has 'mask' of shape {re.escape(str(shape))}, rank 0 of", text)


# --- other ways in which passes part -------------------------------------------------------------


@contextlib.contextmanager
def on_last(context):
    """Inside *context* on the last rank, in nothing on the others."""
    with mine(contextlib.nullcontext(), context):
        yield


PARTED = {
    "dtype": (r"a batch of torch.float32, rank 0 of torch.float64.*Tuning\(wire=", None),
    "gradient": ("requires a gradient on only one of the ranks 0 and", None),
    "mode": (r"rank \d runs the model in evaluation, rank 0 in training: call train\(\)", None),
    "no_grad": (r"in training, no_grad, rank 0 in training: .*torch.no_grad\(\)", None),
    "autocast": ("is under autocast bfloat16, rank 0 under none", None),
    "dims": (r"rank \d: the model takes batches of 4 dimensions", None),
    "call": (r"rank \d: .*was called with", None),
    "no tensor": (r"rank \d: Sequential takes a tensor for", None),
}


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("what", PARTED)
@works("another dtype, mode, autocast or number of dimensions on one rank, in any pass")
def test_passes_that_part_in_another_way_are_refused(what):
    """Also where one rank alone can see that its pass is wrong."""
    model, x = after(LATER, sliced()), batch(IMAGES)
    args, context = (x,), contextlib.nullcontext()
    if what == "dtype":
        args = (mine(x, x.float()),)
    elif what == "gradient":
        args = (mine(x, x.clone().requires_grad_()),)
    elif what == "mode":
        model.train(mine(True, False))
    elif what == "no_grad":
        context = on_last(torch.no_grad())
    elif what == "autocast":
        context = on_last(torch.autocast("cpu", torch.bfloat16))
    elif what == "dims":
        args = (mine(x, x[0]),)
    elif what == "call":
        args = mine((x,), (x, x))
    elif what == "no tensor":
        args = (mine(x, 3.0),)

    def run():
        with context:
            model(*args)

    assert re.search(PARTED[what][0], refused(run))
    near(model.train()(x), small()(x))


@pytest.mark.mpi(min_size=2)
def test_ranks_in_passes_of_unlike_number_say_so():
    model = after(LATER, sliced())
    model.train(mine(True, False))
    text = refused(lambda: model(batch(IMAGES)))
    assert text.startswith(f"forward pass {LATER + 1} in training (rank {world_size() - 1}: 1): ")


@pytest.mark.mpi(min_size=2)
def test_a_layer_that_draws_on_one_rank_only():
    model = after(LATER, sliced(small(nn.Dropout(0.5))))
    for layer in model.children():
        if hasattr(layer, "p"):
            layer.train(mine(True, False))
    last = world_size() - 1
    text = refused(lambda: model(batch(IMAGES)))
    assert f"rank 0 draws random numbers in this pass, rank {last} does not" in text


@pytest.mark.mpi(min_size=2)
def test_another_model_on_one_rank():
    first, second = after(LATER, sliced()), after(LATER, sliced())
    text = refused(lambda: mine(first, second)(batch(IMAGES)))
    assert "call the models in the same order on all ranks" in text
    near(copy.deepcopy(first)(batch(IMAGES)), second(batch(IMAGES)))


@pytest.mark.mpi(min_size=2)
def test_another_copy_of_the_model_on_one_rank():
    model = after(LATER, sliced())
    average = after(1, copy.deepcopy(model))
    text = refused(lambda: mine(model, average)(batch(IMAGES)))
    assert re.search(r"rank \d calls copy 1 of model (\d+) of its ranks, rank 0 model \1,", text)
    near(average(batch(IMAGES)), small()(batch(IMAGES)))


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("what", ["copy", "copy of a copy", "new"])
def test_a_model_that_never_ran_on_one_rank(what):
    """Ranks tell each other which model it is before anything that depends on the model."""
    model = after(LATER, sliced())
    other = sliced() if what == "new" else copy.deepcopy(model)
    if what == "copy of a copy":
        other = copy.deepcopy(other)
    text = refused(lambda: mine(model, other)(batch(IMAGES)))
    assert "call the models in the same order on all ranks" in text
    near(after(LATER, other)(batch(IMAGES)), model(batch(IMAGES)))


@pytest.mark.mpi(min_size=2)
def test_ranks_that_called_one_model_in_unlike_number():
    model = after(LATER, sliced())
    model.hetmp.meeting._passes[True] += mine(0, 1)  # as after an interruption on one rank
    text = refused(lambda: model(batch(IMAGES)))
    assert f"has called its model {LATER + 1} times in this mode, rank 0 {LATER} times" in text


@pytest.mark.mpi(min_size=2)
def test_a_precision_of_autocast_that_is_not_known(monkeypatch):
    model = after(LATER, sliced())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: True)
    monkeypatch.setattr(
        torch, "get_autocast_dtype", lambda device: mine(torch.float16, torch.float8_e5m2)
    )
    text = refused(lambda: model(batch(IMAGES)))
    assert "is under autocast another dtype, rank 0 under float16" in text


@pytest.mark.mpi(min_size=2)
def test_another_program_on_one_rank(monkeypatch):
    model = after(LATER, sliced())
    monkeypatch.setattr(Runtime, "program_mark", lambda self, hooked: mine(2**40, 2**40 + 1))
    text = refused(lambda: model(batch(IMAGES)))
    assert f"rank {world_size() - 1} has other hooks or attributes set on the model" in text


@pytest.mark.mpi(min_size=2)
def test_a_failure_that_is_not_the_inputs_fault_keeps_its_kind():
    class Odd:
        def __eq__(self, other):
            raise RuntimeError("no comparison")

        __hash__ = None

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = small()

        def forward(self, x, scale=1.0):
            return self.a(x) * scale

    model, x = sliced(Scaled()), batch(IMAGES)
    with pytest.raises(AgreedError) as refusal:
        model(x, scale=mine(1.0, Odd()))
    assert refusal.match(rf"^rank {world_size() - 1}: RuntimeError: no comparison$")
    assert refusal.value.exit_code == 1


@pytest.mark.mpi(min_size=2)
def test_unlike_dtypes_pass_where_values_travel_in_one():
    """As on a device that computes in 16 bits beside one that does not."""
    model = sliced(small().float(), tuning=hetmp.Tuning(wire="float32"))
    for step in range(LATER):
        x = batch(IMAGES, step, torch.float32)
        with on_last(torch.autocast("cpu", torch.bfloat16)):
            output = model(mine(x, x.bfloat16()))
        torch.testing.assert_close(output.float(), small().float()(x), rtol=0.1, atol=0.1)


# --- numbers ------------------------------------------------------------------------------------


def test_which_passes_are_compared():
    assert [n for n in range(200) if same_batch.is_due(n)] == [0, 1, 2, 64, 128, 192]


@pytest.mark.mpi(min_size=2)
@works("other numbers in one rank's batch, in the first 3 passes and every 64th")
def test_the_numbers_of_a_later_batch_are_compared(monkeypatch):
    monkeypatch.setattr(same_batch, "EVERY", 8)
    model, x = after(8, sliced()), batch(IMAGES)
    text = refused(lambda: model(mine(x, x.flip(0))))
    assert text.startswith(
        f"forward pass 9 in training: rank {world_size() - 1} has a different batch from rank 0: "
        "give every rank the same whole batch in the same order"
    )
    near(model(x), small()(x))


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("passes", [0, 2])
def test_evaluation_leaves_the_first_passes_of_training_to_it(passes):
    model, x = sliced(), batch(IMAGES)
    after(9, model.eval())
    after(passes, model.train())
    assert "different batch" in refused(lambda: model(mine(x, x.flip(0))))


@pytest.mark.parametrize("shape", [(10, 3, 6, 6), (7, 2, 16, 16), (40, 1, 5, 5)])
def test_of_a_large_batch_every_image_counts(shape, monkeypatch):
    monkeypatch.setattr(same_batch, "COMPARED_NUMBERS", 200)
    x = batch(shape)
    own = same_batch._mark(x)
    for image in range(len(x)):
        other = x.clone()
        other[image] = batch(shape, 1)[image]
        assert np.abs(np.subtract(same_batch._mark(other), own)).max() > 1e-4 * own[1]
    assert same_batch._mark(x.contiguous(memory_format=torch.channels_last)) == own
    assert same_batch._mark(x[:0]) == (0.0, 0.0)


def test_the_imaginary_part_of_a_complex_batch_counts():
    real, imaginary = batch((2, 3)), batch((2, 3), 1)
    x = torch.complex(real, imaginary)
    assert same_batch._mark(x) != same_batch._mark(torch.complex(real, 2 * imaginary))
    assert same_batch._mark(x) != same_batch._mark(x.conj())


# --- messages -----------------------------------------------------------------------------------


def messages(model: hetmp.SlicedModel, action) -> list[str]:
    """Return what this rank enters in *action* besides the exchanges of values.

    It has been done before: the first times, memory is allocated.
    """
    for _ in range(LATER):
        action()
    recorder = model.hetmp.group.recorder
    before = recorder.note("here").number
    action()
    entries = [entry for entry in recorder._entries if entry.number > before]
    return [f"{entry.name} of {entry.value}" for entry in entries if not entry.direction]


START = ["Allgather of the start of a pass"]


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("drops", [True, False])
def test_a_pass_begins_with_one_message(shared, drops):
    more = (nn.Dropout(0.5),) if drops else ()
    model = sliced(small(*more), tuning=hetmp.Tuning(shared_memory=shared))
    x = batch(IMAGES)
    assert messages(model, lambda: model(x).sum().backward()) == START
    model.eval()
    assert messages(model, lambda: model(x)) == START


def test_a_rank_alone_sends_none():
    from mpi4py import MPI

    model = hetmp.slice_model(small(nn.Dropout(0.5)), [1], comm=MPI.COMM_SELF)
    assert messages(model, lambda: model(batch(IMAGES))) == []


class Recomputed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = small(nn.Dropout(0.5)), nn.Conv2d(5, 4, 2)

    def forward(self, x):
        return self.b(checkpoint(self.a, x, use_reentrant=False))


@pytest.mark.mpi(min_size=2)
def test_a_part_that_is_computed_again_does_not_meet_again():
    model, x = sliced(Recomputed().double()), batch(IMAGES)
    assert messages(model, lambda: model(x).sum().backward()) == START


@pytest.mark.mpi
@pytest.mark.parametrize("weights", ["1:2:3", "one zero"])
def test_more_passes_than_are_compared_at_first_are_exact(weights):
    module = seeded(lambda: small(nn.BatchNorm2d(7)))
    compare_training(module, WEIGHTS[weights](world_size()), IMAGES, steps=same_batch.FIRST + 2)
