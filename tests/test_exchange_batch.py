"""Exchanges of slices of the batch, whose lengths are known when a batch arrives."""

from fractions import Fraction

import pytest
import torch

from helpers.exchange_reference import (
    another,
    arranged,
    held,
    layouts,
    moved,
    moved_back,
)
from hetmp.cluster import Group
from hetmp.core.batch_layout import BatchLayout, arrived
from hetmp.core.state import FULL, PARTIAL, Sliced, at_arrival
from hetmp.exchange import Carriage, Exchange
from hetmp.exchange.volume import received

pytestmark = [pytest.mark.mpi, pytest.mark.every_size]

KINDS = {
    "to full": lambda mine, other, channels: (mine, FULL),
    "from full": lambda mine, other, channels: (FULL, mine),
    "from summands": lambda mine, other, channels: (PARTIAL, mine),
    "to channels": lambda mine, other, channels: (mine, channels),
    "from channels": lambda mine, other, channels: (channels, mine),
    "to other weights": lambda mine, other, channels: (mine, other),
}

IMAGES = (1, 2, 11, 0, 4)
"""One after another: fewer than ranks, many, none."""

CARRIAGES = (
    Carriage(),
    Carriage(shared=False),
    Carriage(borrowed=True),
    Carriage(order=(3, 1, 0, 2)),
    Carriage(shared=False, order=(0, 2, 3, 1)),
)

ARRANGEMENTS = ("contiguous", "channels_last", "transposed", "strided", "contiguous")


def weighted(ranks: int, *, block: int = 1, turned: bool = False) -> BatchLayout:
    """A layout of the batch in which one rank has nothing, of more than two."""
    weights = [Fraction(w) for w in (3, 0 if ranks > 2 else 1, 2, 5, 1)[:ranks]]
    return BatchLayout(tuple(weights[::-1] if turned else weights), block)


@pytest.fixture(scope="module")
def group():
    return Group()


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward(group, kind, started):
    """One exchange for batches of all sizes; all are under way before the first goes back.

    What is received is counted as the formula tells it.
    """
    ranks, rank, wrong = range(group.size), group.rank, []
    for name, block, axis in (("uneven", 1, 0), ("pieces", 3, 0), ("zeros", 1, 2)):
        channels = Sliced(layouts(group.size)[name], 1)
        mine = Sliced(weighted(group.size, block=block), axis)
        other = Sliced(weighted(group.size, block=block, turned=True), axis)
        source, target = KINDS[kind](mine, other, channels)
        exchange, under_way = Exchange(group, source, target), []
        for number, images in enumerate(IMAGES):
            shape = [2, channels.layout.total, 2, 3]
            shape[axis] = images * block
            dtype = torch.bfloat16 if number == 2 else torch.float64
            before, after = at_arrival(source, images), at_arrival(target, images)
            values = [held(before, shape, r, 1, dtype) for r in ranks]
            gradients = [held(after, shape, r, 2, dtype) for r in ranks]
            x = arranged(values[rank], ARRANGEMENTS[number]).requires_grad_()
            counted = exchange.forward_counter.bytes
            with arrived(images):
                if started:
                    y = exchange.start(x, CARRIAGES[number]).wait()
                else:
                    y = exchange(x, CARRIAGES[number])
            if not torch.equal(y, moved(values, before, after, shape, rank)):
                wrong.append(("forward", name, images))
            size = torch.Size(shape).numel() * x.element_size()
            told = received(source, target, rank, size, group.size, images)
            counted = exchange.forward_counter.bytes - counted
            if group.size > 1 and dtype != torch.bfloat16 and abs(counted - told[0]) > 1e-6 * size:
                wrong.append(("bytes", name, images, counted, told[0]))
            under_way.append((x, y, gradients, before, after, shape, told[1], dtype))
        for x, y, gradients, before, after, shape, told, dtype in under_way:
            counted = exchange.backward_counter.bytes
            with arrived(77):
                y.backward(gradients[rank])
            if not torch.equal(x.grad, moved_back(gradients, before, after, shape, rank)):
                wrong.append(("backward", name, shape))
            counted = exchange.backward_counter.bytes - counted
            size = x.element_size() * torch.Size(shape).numel()
            if group.size > 1 and dtype != torch.bfloat16 and abs(counted - told) > 1e-6 * size:
                wrong.append(("bytes back", name, shape, counted, told))
    assert not wrong


@pytest.mark.parametrize("kind", KINDS)
def test_the_dot_product_of_the_adjoint(group, kind):
    """<F x, g> over all ranks equals <x, F' g> over all ranks, where full counts once a rank."""
    channels = Sliced(another(layouts(group.size)["pieces"]), 1)
    mine = Sliced(weighted(group.size), 0)
    other = Sliced(weighted(group.size, turned=True), 0)
    source, target = KINDS[kind](mine, other, channels)
    shape = (7, channels.layout.total, 2)
    x = held(at_arrival(source, 7), shape, group.rank, 3).requires_grad_()
    g = held(at_arrival(target, 7), shape, group.rank, 4)
    with arrived(7):
        y = Exchange(group, source, target)(x)
    y.backward(g)
    dots = torch.stack([(y * g).sum(), (x * x.grad).sum()]).detach().numpy()
    there, back = group.allgather(dots).sum(axis=0)
    assert there == back
