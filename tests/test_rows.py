"""A rank that computes some images of a batch needs no others: it gives its rows of the batch."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import hetmp
from helpers.comparison import (
    WEIGHTS,
    Differences,
    batch,
    make_plan,
    mean_loss,
    rank_loss,
    seeded,
    sgd,
    world_size,
)
from helpers.refusing import mine, refused
from hetmp.slicing.not_finite import first_not_finite

pytestmark = pytest.mark.mpi

SHAPE = (3, 6, 6)
"""Of an image."""

SIZES = (7, 2, 5)
"""Of the batches: of 2 images some ranks have none."""


def small() -> nn.Sequential:
    """A network with a norm over the whole batch."""
    return nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.BatchNorm2d(5),
        nn.GELU(),
        nn.Conv2d(5, 6, 3),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(24, 4),
    )


class Pair(nn.Module):
    """Two kinds of images in a dict and a tuple, joined, and a scale for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3), nn.Conv2d(2, 5, 3)
        self.head = nn.Linear(80, 4)

    def forward(self, images, more, *, scale):
        x = self.a(images["x"]) + self.b(more[0]) * scale
        return self.head(torch.tanh(x).flatten(1))


class Recomputed(nn.Module):
    """The first layer lies in a gradient checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = small()[:3], nn.Conv2d(5, 4, 4)

    def forward(self, x):
        return self.last(checkpoint(self.first, x, use_reentrant=False))


def sliced(module: nn.Module, kind="one zero", schemes=("batch", "filters"), **more):
    plan = make_plan(module, WEIGHTS[kind](world_size()), schemes)
    return hetmp.slice_model(module, plan, **more)


def rows(model: hetmp.SlicedModel, x: torch.Tensor) -> hetmp.Rows:
    """This rank's rows of a batch, as it would have read them."""
    return hetmp.Rows(x[model.hetmp.rows(len(x))].clone(), len(x))


def compare(model: hetmp.SlicedModel, module: nn.Module, given, sizes=SIZES) -> None:
    """Train both; *given* returns (arguments of the model, of the module, pairs of inputs)."""
    differences = Differences(model, module)
    rank, ranks = model.hetmp.group.rank, model.hetmp.group.size
    optimizers = [sgd(net.parameters()) for net in (model, module)]
    for step, n in enumerate(sizes):
        own, whole, inputs = given(n, step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        expected, output = module(*whole[0], **whole[1]), model(*own[0], **own[1])
        mean_loss(expected, ranks, step).backward()
        rank_loss(output, rank, step).backward()
        differences.note_gradients()
        differences.compare(f"step {step}, output", output, expected)
        for part, x in inputs:
            of_all = x.grad
            if isinstance(part, hetmp.Rows):
                part, of_all = part.mine, x.grad[model.hetmp.rows(n)]
            differences.compare(f"step {step}, gradient of an input", part.grad, of_all)
        differences.compare_gradients(f"step {step}")
        for optimizer in optimizers:
            optimizer.step()
    differences.compare_state()
    differences.assert_none()


def one_input(model):
    def given(n, step):
        x = batch((n, *SHAPE), step)
        own = rows(model, x)
        own.mine.requires_grad_()
        x.requires_grad_()
        return ((own,), {}), ((x,), {}), [(own, x)]

    return given


@pytest.mark.every_size
@pytest.mark.parametrize(
    ("kind", "schemes"),
    [
        ("equal", ("batch",)),
        ("70:25:5", ("batch", "filters")),
        ("one zero", ("batch", "whole")),
        ("root zero", ("batch",)),
        ("all on last", ("batch", "filters")),
    ],
)
def test_rows_are_the_whole_batch(kind, schemes):
    """Outputs, gradients of weights and rows, running statistics; batches of unlike sizes."""
    module = seeded(small)
    model = sliced(module, kind, schemes)
    compare(model, copy.deepcopy(module), one_input(model))


def test_the_rows_of_all_ranks_are_the_batch_and_follow_the_weights():
    model = sliced(seeded(small))
    group = model.hetmp.group
    for n in (1, 4, 13):
        own = model.hetmp.rows(n)
        counts = hetmp.apportion(n, WEIGHTS["one zero"](group.size)).counts
        assert own.stop - own.start == counts[group.rank]
        assert own.start == sum(counts[: group.rank])


@pytest.mark.parametrize("whole_head", [False, True])
def test_several_inputs_in_a_dict_a_tuple_and_by_name(whole_head):
    """Some as rows, one whole as it has no axis of images, one whole though it has."""
    module = seeded(Pair)
    x, y, scale = batch((2, 3, 6, 6)), batch((2, 2, 6, 6)), batch((5, 1, 1))
    example = {"images": {"x": x}, "more": (y,), "scale": scale}
    model = sliced(module, schemes=("batch", "batch", "filters"), example_input=example)

    def given(n, step):
        x, y, scale = batch((n, 3, 6, 6), step), batch((n, 2, 6, 6), 9 - step), batch((5, 1, 1))
        own = rows(model, x), y.clone() if whole_head else rows(model, y), scale.clone()
        for each in (*own, x, y, scale):
            (each.mine if isinstance(each, hetmp.Rows) else each).requires_grad_()
        return (
            (({"x": own[0]}, [own[1]]), {"scale": own[2]}),
            (({"x": x}, [y]), {"scale": scale}),
            list(zip(own, (x, y, scale), strict=True)),
        )

    compare(model, copy.deepcopy(module), given, (5, 1))
    text = refused(
        lambda: model({"x": x}, [y], scale=hetmp.Rows(scale[model.hetmp.rows(5)], 2)),
    )
    assert "'scale' has no axis that is as long as the batch: give it whole" in text


def test_rows_in_a_gradient_checkpoint_and_two_passes_before_a_backward():
    module = seeded(Recomputed)
    model, reference = sliced(module), copy.deepcopy(module)
    compare(model, reference, one_input(model))
    for net in (model, reference):
        net.eval()
        for parameter in net.parameters():
            parameter.grad = None
    a, b = batch((6, *SHAPE)), batch((3, *SHAPE), 1)
    (reference(a).sum() + reference(b).square().sum()).backward()
    (model(rows(model, a)).sum() + model(rows(model, b)).square().sum()).backward()
    differences = Differences(model, reference)
    differences.note_gradients()
    differences.compare_gradients("of two passes")
    differences.assert_none()


@pytest.mark.parametrize("schemes", [("filters",), ("whole", "batch"), ("inputs", "batch")])
def test_a_model_that_needs_all_images_says_so_and_takes_all(schemes):
    module = seeded(small)
    model, x = sliced(module, schemes=schemes), batch((4, *SHAPE))
    assert model.hetmp.rows(4) == slice(0, 4)
    torch.testing.assert_close(model(rows(model, x)), module(x), rtol=1e-10, atol=1e-12)
    text = refused(lambda: model(hetmp.Rows(x[:1], 4)))
    assert "'input' is 1 rows of a batch of 4, and the model needs all of it on every rank" in text
    assert "as '0' (Conv2d) takes all images" in text


def test_an_input_that_all_ranks_need_for_something_else_is_needed_whole():
    class Centred(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + x.mean()

    model, x = sliced(seeded(lambda: Centred(*small()))), batch((4, *SHAPE))
    assert model.hetmp.rows(4) == slice(0, 4)
    assert "as 'mean'" in refused(lambda: model(hetmp.Rows(x[:1], 4)))


def test_hooks_that_see_the_input_make_all_of_it_needed():
    module, x, seen = seeded(small), batch((4, *SHAPE)), []
    model = sliced(module, "1:2:3")
    own = rows(model, x)
    handle = model.get_submodule("0").register_forward_hook(lambda *args: seen.append(args[1][0]))
    assert model.hetmp.rows(4) == slice(0, 4)
    model(rows(model, x))
    assert torch.equal(seen[0], x)
    if world_size() > 1:
        assert "a hook on '0' (Conv2d) sees whole values" in refused(lambda: model(own))
    handle.remove()
    inner = model.get_submodule("3").register_forward_hook(lambda *args: seen.append(args[2]))
    torch.testing.assert_close(model(own), copy.deepcopy(module)(x), rtol=1e-10, atol=1e-12)
    assert seen[1].shape == (4, 6, 2, 2)
    inner.remove()
    outer = model.register_forward_pre_hook(lambda *args: None)
    text = refused(lambda: model(own), kind=hetmp.HetmpError)
    assert "hooks on the model itself see whole inputs" in text
    outer.remove()


@pytest.mark.mpi(min_size=2)
def test_rows_that_do_not_fit_are_refused_on_all_ranks():
    """On one rank or on all, in training and later; the model can be called again after each."""
    model, x = sliced(seeded(small), "1:2:3"), batch((6, *SHAPE))
    own, ranks = rows(model, x), world_size()
    less = hetmp.Rows(own.mine[1:], 6)
    of = hetmp.Rows(batch((len(own.mine), *SHAPE[:2], 5)), 6)
    last = len(own.mine) if model.hetmp.group.rank == ranks - 1 else 0
    last = int(model.hetmp.group.allgather(torch.tensor([last]).numpy()).max())
    for given, words in (
        (mine(own, less), f"rank {ranks - 1}: 'input' is {last - 1} rows of a batch of 6, and this "
         f"rank needs {last}, from {6 - last} to 6: give the rows that model.hetmp.rows(6) says"),
        (mine(own, hetmp.Rows(x[model.hetmp.rows(5)], 5)), f"rank {ranks - 1} has rows of a batch "
         "of shape (5, 3, 6, 6), rank 0 of shape (6, 3, 6, 6)"),
        (mine(own, of), f"rank {ranks - 1} has rows of a batch of shape (6, 3, 6, 5), rank 0 of"),
        (mine(own, x), f"rank 0 has rows of a batch, rank {ranks - 1} a batch whole"),
        (mine(x, own), f"rank {ranks - 1} has rows of a batch, rank 0 a batch whole"),
        (mine(own, hetmp.Rows(own.mine.float(), 6)), "has a batch of torch.float32, rank 0 of"),
        (hetmp.Rows([1, 2], 6), "takes a tensor whose first axis is the images"),
        (hetmp.Rows(own.mine, 6.5), "rows of a batch of 6.5 images: give a whole number"),
        (hetmp.Rows(own.mine[..., 0], 6), "takes batches of 4 dimensions, got shape (6, 3, 6)"),
    ):  # fmt: skip
        assert words in refused(lambda given=given: model(given))
        model(own)


def test_rows_of_unlike_batches_in_one_call_and_as_an_example_are_refused():
    x, y, scale = batch((4, 3, 6, 6)), batch((4, 2, 6, 6)), batch((5, 1, 1))
    example = {"images": {"x": x}, "more": (y,), "scale": scale}
    model = sliced(seeded(Pair), schemes=("batch",), example_input=example)
    text = refused(
        lambda: model({"x": rows(model, x)}, [rows(model, y[:3])], scale=scale),
        kind=hetmp.HetmpError,
    )
    assert "'more_0' is rows of a batch of 3 images, and 'images_x' is of 4" in text
    text = refused(
        lambda: sliced(seeded(small), example_input=hetmp.Rows(x, 4)), kind=hetmp.HetmpError
    )
    assert "example_input is hetmp.Rows: give a whole batch" in text


def test_a_number_that_is_not_finite_in_one_ranks_rows_is_in_the_images_on_all():
    model, x = sliced(seeded(small), "1:2:3"), batch((6, *SHAPE))
    x[-1, 0, 0, 0] = float("nan")
    assert first_not_finite(model, rows(model, x)) == "the images"
