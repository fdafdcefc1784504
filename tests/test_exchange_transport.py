"""How exchanges travel: started and waited for, in rounds, counted, refused."""

import numpy as np
import pytest
import torch

from helpers.exchange_reference import another, held, layouts, moved, moved_back, numbers
from hetmp.cluster import Group
from hetmp.core.errors import HetmpError
from hetmp.core.partition import Layout, Partition
from hetmp.core.state import FULL, PARTIAL, Sliced
from hetmp.exchange import BackwardSum, Carriage, Exchange, collectives, dual, share_of

pytestmark = [pytest.mark.mpi, pytest.mark.every_size]

COLLECTIVES = Carriage(shared=False)
BOTH = pytest.mark.parametrize("how", [Carriage(), COLLECTIVES], ids=["shared", "collectives"])


@pytest.fixture(scope="module")
def group():
    return Group()


def every_kind(layout, axis: int = 1):
    """(source, target) of every exchange between layers."""
    sliced = Sliced(layout, axis)
    return (
        (sliced, FULL),
        (PARTIAL, sliced),
        (PARTIAL, FULL),
        (FULL, sliced),
        (sliced, Sliced(another(layout), axis)),
    )


def check(group, y, x, source, target, shape, seed):
    """Run backward from *y*; both it and the gradient of *x* are as they should be."""
    gradients = [held(target, shape, rank, seed + 1) for rank in range(group.size)]
    y.backward(gradients[group.rank])
    values = [held(source, shape, rank, seed) for rank in range(group.size)]
    assert torch.equal(y, moved(values, source, target, shape, group.rank))
    assert torch.equal(x.grad, moved_back(gradients, source, target, shape, group.rank))


# --- start and wait -----------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("name", ["uneven", "zeros", "pieces"])
def test_start_and_wait_give_what_the_call_gives(group, name, how):
    layout = layouts(group.size)[name]
    shape = (3, layout.total, 2)
    for source, target in every_kind(layout):
        x = held(source, shape, group.rank, 1).requires_grad_()
        y = Exchange(group, source, target).start(x, how).wait()
        check(group, y, x, source, target, shape, 1)


@BOTH
@pytest.mark.parametrize("backwards", [False, True])
def test_several_in_flight_with_other_work_between(group, backwards, how):
    """Every exchange at once, waited for in another order than started, in both directions."""
    layout = layouts(group.size)["pieces"]
    shape = (2, layout.total, 3)
    kinds = every_kind(layout)
    inputs = [
        held(source, shape, group.rank, seed).requires_grad_()
        for seed, (source, _) in enumerate(kinds)
    ]
    exchanges = [Exchange(group, *kind) for kind in kinds]
    work = numbers((4, 4), 7).requires_grad_()
    pending = []
    for exchange, x in zip(exchanges, inputs, strict=True):
        pending.append(exchange.start(x, how))
        work = work @ work.detach().sign()
    order = [0, 1, 2, 3, 4] if not backwards else [4, 3, 2, 1, 0]
    results = {i: pending[i].wait() for i in order}
    gradients = [held(target, shape, group.rank, 50 + i) for i, (_, target) in enumerate(kinds)]
    loss = sum((results[i] * gradients[i]).sum() for i in range(len(kinds))) + work.sum()
    loss.backward()

    for i, (source, target) in enumerate(kinds):
        values = [held(source, shape, rank, i) for rank in range(group.size)]
        back = [held(target, shape, rank, 50 + i) for rank in range(group.size)]
        assert torch.equal(results[i], moved(values, source, target, shape, group.rank)), i
        assert torch.equal(inputs[i].grad, moved_back(back, source, target, shape, group.rank)), i


@BOTH
def test_one_exchange_several_times_in_flight(group, how):
    layout = layouts(group.size)["uneven"]
    shape, source = (2, layout.total), Sliced(layout)
    exchange = Exchange(group, source, FULL)
    inputs = [held(source, shape, group.rank, seed).requires_grad_() for seed in range(0, 50, 10)]
    pending = [exchange.start(x, how) for x in inputs]
    for seed, x, one in zip(range(0, 50, 10), inputs, pending, strict=True):
        check(group, one.wait(), x, source, FULL, shape, seed)


def test_two_backwards_through_a_pending_exchange(group):
    layout = layouts(group.size)["uneven"]
    shape, source = (2, layout.total), Sliced(layout)
    x = held(source, shape, group.rank, 1).requires_grad_()
    y = Exchange(group, source, FULL).start(x).wait()
    gradients = [held(FULL, shape, rank, 2) for rank in range(group.size)]
    y.backward(gradients[group.rank], retain_graph=True)
    y.backward(gradients[group.rank])
    assert torch.equal(x.grad, 2 * moved_back(gradients, source, FULL, shape, group.rank))


def test_a_chain_of_pending_exchanges_with_work_between_start_and_wait(group):
    """The gradient of what runs between the two ends is that of the whole chain."""
    layout = layouts(group.size)["uneven"]
    shape, sliced = (2, layout.total), Sliced(layout)
    x = held(sliced, shape, group.rank, 1).requires_grad_()
    pending = Exchange(group, sliced, FULL).start(x)
    beside = (x * 3).sum()
    y = Exchange(group, FULL, sliced).start(pending.wait() * 2).wait()
    (y.sum() + beside).backward()
    assert torch.equal(x.grad, torch.full_like(x, 5))


# --- rounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 7, 50])
def test_messages_above_the_limit_go_in_rounds(group, limit, monkeypatch):
    monkeypatch.setattr(collectives, "MAX_COUNT", limit)
    for name in ("uneven", "zeros", "all-on-last", "pieces"):
        layout = layouts(group.size)[name]
        shape = (2, layout.total, 1 if limit == 1 else 3)
        for source, target in every_kind(layout):
            for started in (False, True):
                x = held(source, shape, group.rank, 1).requires_grad_()
                exchange = Exchange(group, source, target)
                y = exchange.start(x, COLLECTIVES).wait() if started else exchange(x, COLLECTIVES)
                check(group, y, x, source, target, shape, 1)


@pytest.mark.parametrize("limit", [7, 50])
def test_the_entry_goes_in_rounds_too(group, limit, monkeypatch):
    monkeypatch.setattr(collectives, "MAX_COUNT", limit)
    x = numbers((5, 11), 1).requires_grad_()
    (entered,) = BackwardSum(group)(x)
    gradients = [numbers((5, 11), 2 + rank) for rank in range(group.size)]
    entered.backward(gradients[group.rank])
    assert torch.equal(x.grad, sum(gradients))


def test_how_many_rounds_there_are(group, monkeypatch):
    """No MPI call is told more elements than the limit."""
    ranks = group.size
    monkeypatch.setattr(collectives, "MAX_COUNT", 5 * ranks)
    counts = [12] + [3] * (ranks - 1)  # blocks of at most 5 elements a rank: 3 rounds
    mine = np.zeros(counts[group.rank])
    whole = np.zeros(sum(counts))
    all_to_all = np.full((ranks, ranks), 12)
    operations = [
        collectives.allgatherv(group, mine, counts, blocking=False),
        collectives.reduce_scatter(group, whole, counts, blocking=False),
        collectives.allreduce(group, np.zeros(15 * ranks), blocking=False),
        collectives.alltoallv(group, np.zeros(12 * ranks), all_to_all, blocking=False),
    ]
    rounds = [len(operation.requests) for operation in operations]
    for operation in operations:
        operation.wait()
    unsplit = 12 + 3 * (ranks - 1) <= 5 * ranks
    assert rounds == [1 if unsplit else 3, 1 if unsplit else 3, 3, 3]


# --- counters -----------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("dtype", "moved_size", "summed_size"),
    [(torch.float64, 8, 8), (torch.float32, 4, 4), (torch.bfloat16, 2, 4)],
)
def test_counters_count_calls_bytes_and_seconds(group, dtype, moved_size, summed_size, how):
    """Bytes are those that a rank must receive; MPI sums 16-bit floats as float32."""
    ranks, rank = group.size, group.rank
    layout = layouts(ranks)["uneven"]
    other = another(layout)
    shape, inner = (2, layout.total, 3), 6
    mine = layout.counts[rank] * inner
    others = layout.total * inner - mine

    def new(source: Layout, target: Layout) -> int:
        """How many indices of my share in *target* were not mine in *source*."""
        owned = [
            {i for piece in one.slices(rank) for i in range(piece.start, piece.stop)}
            for one in (source, target)
        ]
        return len(owned[1] - owned[0])

    scattered_size = moved_size if how.shared and group.on_one_host else summed_size
    gathered, scattered = others * moved_size, (ranks - 1) * mine * scattered_size
    reduced = 2 * (ranks - 1) * layout.total * inner * summed_size // ranks
    expected = {
        "Allgatherv": (gathered, scattered),
        "Reduce_scatter": (scattered, gathered),
        "Allreduce": (reduced, reduced),
        "-": (0, 0),
        "Alltoallv": (
            new(layout, other) * inner * moved_size,
            new(other, layout) * inner * moved_size,
        ),
    }
    for source, target in every_kind(layout):
        exchange = Exchange(group, source, target)
        assert (exchange.forward_counter.calls, exchange.forward_counter.seconds) == (0, 0.0)
        for times in (1, 2):
            x = held(source, shape, rank, 1, dtype).requires_grad_()
            y = exchange(x, how) if times == 1 else exchange.start(x, how).wait()
            y.backward(held(target, shape, rank, 2, dtype))
            for counter, bytes_once in zip(
                (exchange.forward_counter, exchange.backward_counter),
                expected[exchange.collective],
                strict=True,
            ):
                if ranks == 1:  # nothing is called, so nothing is counted
                    assert (counter.calls, counter.bytes) == (0, 0)
                    continue
                assert (counter.calls, counter.bytes) == (times, times * bytes_once)
                assert counter.seconds > 0


def test_the_collectives_are_named(group):
    layout = layouts(group.size)["even"]
    named = [
        (Exchange(group, *kind).collective, Exchange(group, *kind).backward_collective)
        for kind in every_kind(layout)
    ]
    assert named == [
        ("Allgatherv", "Reduce_scatter"),
        ("Reduce_scatter", "Allgatherv"),
        ("Allreduce", "Allreduce"),
        ("-", "-"),
        ("Alltoallv", "Alltoallv"),
    ]
    counts = "/".join(["2"] * group.size)
    assert f"sliced {counts} -> full" in repr(Exchange(group, Sliced(layout), FULL))


def test_the_gradient_of_full_is_partial():
    sliced = Sliced(Layout.of(Partition((1, 2))))
    assert (dual(FULL), dual(PARTIAL), dual(sliced)) == (PARTIAL, FULL, sliced)


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.mpi(min_size=2)
def test_a_tensor_that_is_not_the_share_is_refused(group):
    layout = layouts(group.size)["even"]
    gather = Exchange(group, Sliced(layout), FULL)
    total = layout.total
    with pytest.raises(HetmpError, match=rf"axis 1 is {total} long.*holds 2 indices.*\(3, 5\)"):
        gather(torch.zeros(3, 5))
    with pytest.raises(HetmpError, match=rf"axis 1 is {total} long.*holds 2 indices.*\(2,\)"):
        gather(torch.zeros(2))
    with pytest.raises(HetmpError, match=rf"axis 1 is {total} long.*\(3, {total + 1}\)"):
        Exchange(group, PARTIAL, Sliced(layout))(torch.zeros(3, total + 1))
    with pytest.raises(HetmpError, match=rf"axis 1 is {total} long.*\(3, {total + 1}\)"):
        Exchange(group, FULL, Sliced(layout))(torch.zeros(3, total + 1))


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float8_e4m3fn])
def test_a_dtype_that_is_not_exchanged_is_refused(group, dtype):
    x = torch.zeros(1, 2 * group.size).to(dtype)
    with pytest.raises(HetmpError, match=f"{dtype} cannot be exchanged: convert it to float"):
        Exchange(group, PARTIAL, FULL)(x)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("axis", [1, -2])
def test_complex_numbers_travel_as_pairs(group, axis):
    """Forward and backward, with the axis counted from either side."""
    layout = layouts(group.size)["even"]
    whole = torch.randn(2, layout.total, 3, dtype=torch.complex128,
                        generator=torch.Generator().manual_seed(0))  # fmt: skip
    mine = share_of(whole, Sliced(layout, 1), group.rank).clone().requires_grad_()
    gathered = Exchange(group, Sliced(layout, axis), FULL)(mine)
    assert torch.equal(gathered, whole)
    gathered.backward(whole * (group.rank + 1))
    ranks = sum(rank + 1 for rank in range(group.size))
    assert torch.allclose(mine.grad, mine.detach() * ranks)
    summed = Exchange(group, PARTIAL, FULL)(whole)
    assert torch.allclose(summed, whole * group.size)


def test_states_that_do_not_join_are_refused(group):
    sliced = Sliced(layouts(group.size)["even"])
    for source, target in ((FULL, FULL), (FULL, PARTIAL), (PARTIAL, PARTIAL)):
        with pytest.raises(HetmpError, match=f"no exchange leads from {source} to {target}"):
            _ = Exchange(group, source, target).collective
    assert Exchange(group, sliced, PARTIAL).collective == "-"  # the backward of full -> sliced


@pytest.mark.mpi(min_size=2)
def test_slices_of_unlike_lengths_do_not_join(group):
    layout = layouts(group.size)["even"]
    x = torch.zeros(2, 2, 2)
    for other, words in (
        (Sliced(layout.scaled(2), 1), "are not slices of the same axis"),
        (Sliced(layout, 2), f"axis 2 is {layout.total} long in the layout, got a tensor of shape"),
    ):
        with pytest.raises(HetmpError, match=words):
            Exchange(group, Sliced(layout, 1), other)(x)
