"""What hetmp has no rule for is computed whole on every rank: exact, random or not, or refused."""

import copy
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import hetmp
from helpers.comparison import (
    WEIGHTS,
    Differences,
    batch,
    compare_training,
    mean_loss,
    pick_weights,
    rank_loss,
    seeded,
    world_size,
)

pytestmark = pytest.mark.mpi

IMAGES = (3, 3, 8, 8)


class Doubled(nn.BatchNorm2d):
    """A layer of one's own: a subclass may do anything."""

    def forward(self, x):
        return 2 * super().forward(x).flip(1)


class Sequence(nn.Module):
    """A recurrent layer and attention over pixels, between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3, stride=2), nn.Conv1d(10, 5, 1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent = nn.GRU(8, 10, batch_first=True)

    def forward(self, x):
        y = self.conv(x).flatten(2).transpose(1, 2)  # (n, pixels, c)
        y = y + self.attention(y, y, y, need_weights=False)[0]
        y, _ = self.recurrent(y)
        return self.last(y.transpose(1, 2))


MODULES = {
    "a subclass": lambda: nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.ReLU(), Doubled(7), nn.Conv2d(7, 5, 3, padding=1),
        nn.BatchNorm2d(5), nn.Conv2d(5, 4, 1),
    ),
    "sequences": Sequence,
    "spectral norm": lambda: nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.utils.parametrizations.spectral_norm(nn.Conv2d(7, 5, 1)), nn.ReLU(),
        nn.Conv2d(5, 4, 1),
    ),
    "a function": lambda: Function(),
}  # fmt: skip


class Function(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 7, 3), nn.Conv2d(3, 7, 3)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        return torch.cdist(a.flatten(2), b.flatten(2)), torch.renorm(b, 2, 1, 5.0)


@pytest.mark.parametrize("kind", ["70:25:5", "one zero"])
@pytest.mark.parametrize("name", MODULES)
def test_what_has_no_rule_is_exact(name, kind):
    module = seeded(MODULES[name])
    weights = WEIGHTS[kind](world_size())
    model, _ = compare_training(module, weights, IMAGES, example=True)
    assert len(list(model.hetmp.graph.fallbacks())) > 0


class Picky(nn.Module):
    """Looks at values: torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(7, 7, 1), nn.BatchNorm2d(7)

    def forward(self, x):
        y = self.norm(self.conv(x))
        return y if float(y.detach().abs().max()) > 1e9 else -y


def test_a_leaf_is_kept_whole():
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 7, 3), Picky(), nn.Conv2d(7, 4, 1)))
    with pytest.raises(hetmp.HetmpError, match=r"cannot trace Sequential, at .*py:\d+.*hetmp.leaf"):
        hetmp.slice_model(module, pick_weights(0))
    hetmp.leaf(module[1])
    compare_training(module, pick_weights(0), IMAGES)


class Turned(nn.Module):
    """A part that is kept as one, with layers of its own inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(7, 7, 1), nn.BatchNorm2d(7)

    def forward(self, x):
        return self.norm(self.conv(x)).flip(1)


def test_a_leaf_with_layers_inside():
    module = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 7, 3), hetmp.leaf(Turned()), nn.Conv2d(7, 4, 1))
    )
    model, _ = compare_training(module, pick_weights(1), IMAGES)
    assert [node.path for node in model.hetmp.graph.fallbacks()] == ["1"]
    assert [layer.name for layer in model.hetmp.plan.layers] == ["0", "2"]


@dataclass
class Scores:
    main: torch.Tensor
    several: list
    count: int = 2


@hetmp.leaf
class Packing(nn.Module):
    """A part that packs what it gives in a way of its own."""

    def forward(self, x):
        return OrderedDict(out=x * 2, more=Scores(x.mean((2, 3)), [x.square(), {"x": x}]))


def test_tensors_are_found_in_whatever_a_leaf_packs_them():
    """Else their gradients would be the sum over the ranks, not the mean."""
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 7, 3), Packing()))
    reference = copy.deepcopy(module)
    model = hetmp.slice_model(module, pick_weights(4))
    ranks, rank = world_size(), model.hetmp.group.rank
    output, wanted = model(batch(IMAGES)), reference(batch(IMAGES))
    assert type(output) is OrderedDict
    assert output["more"].count == 2
    tensors = [
        [o["out"], o["more"].main, o["more"].several[0], o["more"].several[1]["x"]]
        for o in (output, wanted)
    ]
    sum(rank_loss(tensor, rank) for tensor in tensors[0]).backward()
    sum(mean_loss(tensor, ranks) for tensor in tensors[1]).backward()
    differences = Differences(model, reference)
    differences.note_gradients()
    differences.compare_gradients("once")
    differences.assert_none()


def test_an_output_that_tensors_cannot_be_found_in():
    class Hidden(nn.Module):
        def forward(self, x):
            return iter([x])

    module = nn.Sequential(nn.Conv2d(3, 7, 3), hetmp.leaf(Hidden()))
    model = hetmp.slice_model(module, pick_weights(4))
    with pytest.raises(hetmp.HetmpError, match="returns a list_iterator, whose tensors"):
        model(batch(IMAGES, dtype=torch.float32))


class Noisy(nn.Module):
    """Stochastic depth and noise, with torch's own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 7, 1)
        self.alpha = nn.AlphaDropout(0.3)

    def forward(self, x):
        y = self.a(x)
        keep = torch.rand(y.shape[0], 1, 1, 1, dtype=y.dtype, device=y.device) < 0.5
        return self.alpha(y + self.b(y) * keep) + torch.rand_like(y)


def test_what_is_drawn_is_the_same_on_every_rank_and_rank_count():
    from mpi4py import MPI

    module, x = seeded(Noisy), batch(IMAGES)
    model = hetmp.slice_model(module, pick_weights(2))
    alone = hetmp.slice_model(module, [1.0], MPI.COMM_SELF)
    torch.manual_seed(7 + model.hetmp.group.rank)  # rank 0's seed is what counts
    first, second = model(x), model(x)
    torch.manual_seed(7)
    wanted, other = alone(x), alone(x)
    told = [torch.allclose(first, wanted), torch.allclose(second, other)]
    after = torch.rand(1)
    torch.manual_seed(7)
    torch.randint(2**62, (1,))
    torch.randint(2**62, (1,))
    assert told == [True, True]
    assert not torch.allclose(first, second)
    assert torch.equal(after, torch.rand(1))  # the user's own generator goes on as it would


def test_strict_refuses_with_the_place():
    module = seeded(MODULES["a subclass"])
    with pytest.raises(hetmp.HetmpError, match=r"layer '2' \(Doubled\) cannot be sliced.*no rule"):
        hetmp.slice_model(module, pick_weights(3), strict=True)
    with pytest.raises(hetmp.HetmpError, match=r"operation 'cdist' at .*py:\d+ cannot be sliced"):
        hetmp.slice_model(seeded(Function), pick_weights(3), strict=True)
    hetmp.slice_model(nn.Sequential(nn.Conv2d(3, 4, 1)), pick_weights(3), strict=True)
