"""How every command begins: the ranks in order, and what each computes with."""

import pytest
import torch

import hetmp
from hetmp.core.errors import HetmpError
from hetmp.run.rank_setup import RankOrder, order_ranks, set_up_rank


def test_values_go_with_their_ranks():
    order = RankOrder(None, None, (0, 2, 1))
    assert order.arrange((1.0, 2.0, 3.0)) == (1.0, 3.0, 2.0)
    assert order.arrange(("bfloat16",)) == ("bfloat16",)  # for all ranks
    assert order.arrange(None) is None


@pytest.mark.mpi(min_size=2)
def test_a_rank_gets_its_own_precision_and_slowdown():
    group = hetmp.Group()
    slowdown = tuple(float(1 + rank) for rank in range(group.size))
    autocast = ("none", *["bfloat16"] * (group.size - 1))
    ranks = order_ranks(None, slowdown)
    assert ranks.order == tuple(range(group.size))  # on one host they are in order
    setup = set_up_rank(ranks, "cpu", autocast=autocast, slowdown=slowdown, seed=7)
    assert setup.slowdown == 1.0 + group.rank
    assert setup.autocast == (torch.bfloat16 if group.rank else None)
    assert (setup.device, setup.threads) == (torch.device("cpu"), torch.get_num_threads())
    drawn = group.allgather(torch.rand(1).numpy())
    assert (drawn == drawn[0]).all()


@pytest.mark.mpi(min_size=2)
def test_lists_for_another_number_of_ranks_are_refused_on_every_rank():
    size = hetmp.Group().size
    with pytest.raises(HetmpError, match=f"1 slowdowns for {size} ranks"):
        order_ranks(None, (2.0,))
    ranks = order_ranks(None)
    with pytest.raises(HetmpError, match=f"{size + 1} entries for {size} ranks"):
        set_up_rank(ranks, "cpu", autocast=("none",) * (size + 1))
