"""Every exchange and its gradient, against what each rank computes from all ranks' data."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from helpers.exchange_reference import (
    another,
    arranged,
    held,
    layouts,
    moved,
    moved_back,
    numbers,
    share,
)
from hetmp.cluster import Group
from hetmp.core.state import FULL, PARTIAL, Sliced
from hetmp.exchange import BackwardSum, Carriage, Exchange, leave

pytestmark = [pytest.mark.mpi, pytest.mark.every_size]

KINDS = ("sliced-full", "partial-sliced", "partial-full", "full-sliced", "sliced-sliced")

# Sizes before and after the sliced axis, that axis as it is named, memory format, dtype.
ARRANGEMENTS = (
    ((3,), (), 1, "contiguous", torch.float64),
    ((), (3,), 0, "transposed", torch.float32),
    ((2,), (5,), 1, "strided", torch.float64),
    ((2, 5), (), -1, "transposed", torch.float32),
    ((4, 3), (), 2, "contiguous", torch.bfloat16),
    ((3,), (2, 4), 1, "channels_last", torch.float32),
    ((3,), (2, 4), 1, "transposed", torch.float64),
    ((1,), (3, 2), -3, "strided", torch.float16),
    ((2,), (3, 2), 1, "channels_last", torch.bfloat16),
    ((2,), (2, 3, 2), 1, "contiguous", torch.float16),
    ((2,), (2, 1, 3), -4, "channels_last", torch.float64),
    ((0,), (3, 3), 1, "contiguous", torch.float32),
)

CARRIAGES = {
    "shared": Carriage(),
    "borrowed": Carriage(borrowed=True),
    "collectives": Carriage(shared=False),
    "rounded": Carriage(rounded=True),
    "rounded collectives": Carriage(shared=False, rounded=True),
}


def states(kind: str, layout, axis: int):
    """The states of a kind of exchange."""
    sliced = Sliced(layout, axis)
    return {
        "sliced-full": (sliced, FULL),
        "partial-sliced": (PARTIAL, sliced),
        "partial-full": (PARTIAL, FULL),
        "full-sliced": (FULL, sliced),
        "sliced-sliced": (sliced, Sliced(another(layout), axis)),
    }[kind]


@pytest.fixture(scope="module")
def group():
    return Group()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("carriage", CARRIAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward(group, kind, carriage, turned):
    """A different output gradient on each rank: the backward pass is the exact adjoint.

    Turned, the last dimension comes first in memory and on the wire.
    """
    wrong = []
    ranks = range(group.size)
    for (name, layout), case in product(layouts(group.size).items(), ARRANGEMENTS):
        before, after, axis, how, dtype = case
        shape = (*before, layout.total, *after)
        source, target = states(kind, layout, axis)
        values = [held(source, shape, rank, 1, dtype) for rank in ranks]
        gradients = [held(target, shape, rank, 2, dtype) for rank in ranks]
        x = arranged(values[group.rank], how).requires_grad_()
        kept = x.detach().clone()

        order = (len(shape) - 1, *range(len(shape) - 1)) if turned else None
        y = Exchange(group, source, target)(x, replace(CARRIAGES[carriage], order=order))
        y.backward(arranged(gradients[group.rank], how))
        moves = Exchange(group, source, target).collective != "-"
        if order and moves and group.size > 1 and not y.permute(order).is_contiguous():
            wrong.append(("order in memory", name, *case))

        expected = moved(values, source, target, shape, group.rank)
        if y.dtype != dtype or not torch.equal(y, expected):
            wrong.append(("forward", name, *case))
        expected = moved_back(gradients, source, target, shape, group.rank)
        if x.grad.dtype != dtype or not torch.equal(x.grad, expected):
            wrong.append(("backward", name, *case))
        if not torch.equal(x, kept):
            wrong.append(("input changed", name, *case))
    assert not wrong


@pytest.mark.parametrize("kind", KINDS)
def test_the_dot_product_of_the_adjoint(group, kind):
    """<F x, g> over all ranks equals <x, F' g> over all ranks, where full counts once a rank."""
    layout = layouts(group.size)["pieces"]
    source, target = states(kind, layout, 1)
    shape = (3, layout.total, 2)
    x = held(source, shape, group.rank, 3).requires_grad_()
    g = held(target, shape, group.rank, 4)
    y = Exchange(group, source, target)(x)
    y.backward(g)
    dots = torch.stack([(y * g).sum(), (x * x.grad).sum()]).detach().numpy()
    there, back = group.allgather(dots).sum(axis=0)
    assert there == back


def test_a_gradient_that_is_one_number_expanded(group):
    """``y.sum()`` hands back a gradient whose elements share one place in memory."""
    layout = layouts(group.size)["uneven"]
    x = held(Sliced(layout), (2, layout.total, 3), group.rank, 5).requires_grad_()
    Exchange(group, Sliced(layout), FULL)(x).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, group.size))


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_that_needs_no_gradient(group, kind):
    source, target = states(kind, layouts(group.size)["zeros"], 1)
    shape = (2, layouts(group.size)["zeros"].total)
    x = held(source, shape, group.rank, 6)
    exchange = Exchange(group, source, target)
    assert not exchange(x).requires_grad
    with torch.no_grad():
        y = exchange(x.requires_grad_())
    assert y is x or not y.requires_grad
    with torch.inference_mode():
        y = exchange(x)
    values = [held(source, shape, rank, 6) for rank in range(group.size)]
    assert torch.equal(y, moved(values, source, target, shape, group.rank))


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_may_be_changed_in_place(group, kind):
    """As an in-place activation behind the exchange does; also where nothing is packed."""
    layout = layouts(group.size)["uneven"]
    source, target = states(kind, layout, 1)
    for shape in ((1, layout.total, 2), (3, layout.total, 2)):
        values = [held(source, shape, rank, 7) for rank in range(group.size)]
        x = values[group.rank].clone().requires_grad_()
        # The unsliced counterpart may not change a leaf in place either.
        y = Exchange(group, source, target)(x * 1).mul_(2)
        gradients = [held(target, shape, rank, 8) for rank in range(group.size)]
        y.backward(gradients[group.rank])
        assert torch.equal(y, 2 * moved(values, source, target, shape, group.rank))
        expected = moved_back([2 * g for g in gradients], source, target, shape, group.rank)
        assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_floats_are_moved_bit_by_bit(group, dtype):
    layout = layouts(group.size)["uneven"]
    special = torch.tensor([float("nan"), float("inf"), -0.0, 6e-8, 65504.0], dtype=dtype)
    whole = special.repeat(layout.total)[: layout.total].view(1, -1)
    sliced = Sliced(layout)
    start = layout.slices(group.rank)[0]
    gathered = Exchange(group, sliced, FULL)(whole[:, start])
    assert torch.equal(gathered.view(torch.int16), whole.view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_floats_are_summed_in_more(group, dtype):
    """The sum of 2048 + 1 + 1 + ... is rounded once, at its end, not after each summand."""
    value = 256.0 if dtype is torch.bfloat16 else 2048.0
    x = torch.full((1, 3), value if group.rank == 0 else 1.0, dtype=dtype)
    expected = torch.full((1, 3), value + group.size - 1).to(dtype)
    assert torch.equal(Exchange(group, PARTIAL, FULL)(x), expected)


# --- at the entry and at the end ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("name", ["uneven", "zeros", "pieces"])
def test_masks_and_whole_numbers_are_moved(group, name, dtype):
    layout = layouts(group.size)[name]
    whole = numbers((2, layout.total, 3), 1).abs().to(dtype)
    mine = share(whole, Sliced(layout), group.rank)
    gathered = Exchange(group, Sliced(layout), FULL)(mine)
    assert torch.equal(gathered, whole)
    assert gathered.dtype == dtype
    other = Sliced(another(layout))
    assert torch.equal(
        Exchange(group, Sliced(layout), other)(mine), share(whole, other, group.rank)
    )


def test_whole_numbers_are_summed(group):
    given = [numbers((2, 5), rank).long() for rank in range(group.size)]
    assert torch.equal(Exchange(group, PARTIAL, FULL)(given[group.rank]), sum(given))


@pytest.mark.parametrize("started", [False, True])
def test_each_exchange_keeps_its_own_wire(group, started):
    """Both ways, also where another wire is used between; what arrives has its own dtype."""
    layout = layouts(group.size)["uneven"]
    mine = held(Sliced(layout), (2, layout.total, 3), group.rank, 5)
    exchanges = [Exchange(group, Sliced(layout), FULL, wire) for wire in (None, "float32", None)]
    inputs = [mine.clone().requires_grad_() for _ in exchanges]
    outputs = [
        exchange.start(x).wait() if started else exchange(x)
        for exchange, x in zip(exchanges, inputs, strict=True)
    ]
    for output in outputs:
        output.sum().backward()
    for which in ("forward_counter", "backward_counter"):
        wide, narrow, again = (getattr(exchange, which).bytes for exchange in exchanges)
        assert wide == again == 2 * narrow
    assert all(tensor.dtype == torch.float64 for tensor in (*outputs, inputs[1].grad))


def test_an_entry_sums_in_its_own_wire(group):
    counts = []
    for wire in (None, "float32"):
        entry = BackwardSum(group, wire)
        x = numbers((6, 5), 3).requires_grad_()
        (entered,) = entry(x)
        entered.sum().backward()
        assert torch.equal(x.grad, torch.full_like(x, group.size))
        counts.append(entry.backward_counter.bytes)
    wide, narrow = counts
    assert narrow == pytest.approx(wide / 2, abs=1)


def test_entry_sums_the_gradients_of_all_tensors_at_once(group):
    shapes = ((3, 2), (), (4,), (2, 1, 2))
    dtypes = (torch.float64, torch.float64, torch.float32, torch.float64)
    tensors = [
        numbers(shape, seed, dtype)
        for seed, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    ]
    for i in (0, 1, 2):
        tensors[i].requires_grad_()
    entry = BackwardSum(group)
    entered = entry(*tensors)
    for one, tensor in zip(entered, tensors, strict=True):
        assert torch.equal(one, tensor)
        assert one.requires_grad == tensor.requires_grad

    def gradient(i, rank):
        return numbers(shapes[i], 10 * i + rank, dtypes[i])

    sum((one * gradient(i, group.rank)).sum().double() for i, one in enumerate(entered)).backward()
    for i in (0, 1, 2):
        expected = sum(gradient(i, rank) for rank in range(group.size))
        assert torch.equal(tensors[i].grad, expected)
    assert tensors[3].grad is None
    # One Allreduce per dtype.
    assert entry.backward_counter.calls == (2 if group.size > 1 else 0)


def test_entry_sums_zeros_for_a_tensor_that_one_rank_did_not_use(group):
    first, second = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    one, other = BackwardSum(group)(first, second)
    last = group.size - 1
    (one.sum() if group.rank != last else one.sum() + 2 * other.sum()).backward()
    assert torch.equal(first.grad, torch.full((3,), float(group.size)))
    assert torch.equal(second.grad, torch.full((2,), 2.0))


def test_entry_of_nothing_that_needs_a_gradient(group):
    entry = BackwardSum(group)
    x = torch.ones(2)
    (entered,) = entry(x)
    assert entered is x
    assert entry() == ()
    with torch.no_grad():
        (entered,) = entry(x.requires_grad_())
    assert not entered.requires_grad or entered is x


def test_what_entered_may_be_changed_in_place(group):
    """As an in-place activation in front of the first layer does."""
    x = torch.ones(3, requires_grad=True)
    (entered,) = BackwardSum(group)(x * 1)
    entered.mul_(group.rank + 2.0).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), sum(r + 2.0 for r in range(group.size))))


def test_leave_averages_the_gradients(group):
    x = torch.ones(2, 3, requires_grad=True)
    y = leave(group, x)
    gradients = [numbers((2, 3), rank, torch.float32) for rank in range(group.size)]
    y.backward(gradients[group.rank])
    assert torch.equal(y, x)
    torch.testing.assert_close(x.grad, gradients[group.rank] / group.size, rtol=1e-6, atol=0)
    assert not leave(group, x.detach()).requires_grad


def test_what_left_may_be_changed_in_place(group):
    x = torch.ones(2, requires_grad=True)
    leave(group, x * 1).mul_(3).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((2,), 3.0 / group.size))


def test_what_no_rank_used_has_no_gradient(group):
    """None, not zeros: an optimizer would decay a parameter that the loss does not see."""
    first, second = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    one, _ = BackwardSum(group)(first, second)
    one.sum().backward()
    assert torch.equal(first.grad, torch.full((3,), float(group.size)))
    assert second.grad is None
