"""Modules whose images lie on several ranks, in all that they do with the batch's axis."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hetmp
from helpers.comparison import (
    batch,
    compare_training,
    make_plan,
    pick_weights,
    seeded,
    world_size,
)
from hetmp import HetmpError

pytestmark = pytest.mark.mpi

SHAPE = (5, 3, 4, 6)


class Between(nn.Module):
    """A function of images between two convolutions; the second one's results go on."""

    def __init__(self, work) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, (1, 3))
        self.work = work

    def forward(self, x):
        return self.work(self.second(self.first(x).tanh()))


def features(x):
    """(n, c, h, w) -> (n, c)."""
    return x.mean((2, 3))


def merged(x):
    """Rows of images as images, and back."""
    n, c, h, w = x.shape
    rows = x.permute(0, 2, 1, 3).reshape(n * h, c, w)
    return (rows - rows.amax(2, keepdim=True)).view(n, h, c, w).transpose(1, 2)


def over_time(x):
    """The batch goes to another axis and comes back."""
    times = x.flatten(2).permute(2, 0, 1)  # (t, n, c)
    sums = times.cumsum(0)
    return (sums * sums.softmax(2)).permute(1, 2, 0)


def contrast(x):
    """Every image is compared with every other one."""
    one = F.normalize(features(x), dim=1)
    return one @ one.T, F.cosine_similarity(one[:, None], one[None], dim=2), torch.cdist(one, one)


def losses(x):
    y = x.flip(3).tanh()
    return (
        F.mse_loss(x, y), F.l1_loss(x, y, reduction="sum"), F.huber_loss(x, y, reduction="none"),
        F.smooth_l1_loss(x, y), F.binary_cross_entropy_with_logits(x, y.sigmoid()),
    )  # fmt: skip


WORKS = {
    "flip": lambda x: x.flip(0) * x,
    "roll": lambda x: x.roll(1, 0) + x.roll((1, 2), (0, 3)),
    "running": lambda x: x.cumsum(0) * x.sort(0)[0] + x.softmax(0),
    "centred": lambda x: (x - x.mean(0)) / (x.std(0, keepdim=True) + 1),
    "one image": lambda x: x[0] * x + x[-1:],
    "every other": lambda x: torch.cat([x[::2], x[1::2]]),
    "in another order": lambda x: x[torch.arange(x.size(0) - 1, -1, -1)],
    "stacked": lambda x: torch.stack([x, x.tanh()]).sum(0) + torch.cat([x, x.sin()])[: x.size(0)],
    "halves": lambda x: torch.cat([*x.chunk(2, 0)][::-1]),
    "repeated": lambda x: x.repeat(2, 1, 1, 1) + x.repeat_interleave(2, dim=0),
    "interleaved and back": lambda x: x.repeat_interleave(3, 0).view(-1, 3, *x.shape[1:]).amax(1),
    "contrast": contrast,
    "einsum": lambda x: (
        torch.einsum("nc,mc->nm", features(x), features(x)),
        torch.einsum("nchw,nd->cd", x, features(x)),
    ),
    "covariance": lambda x: features(x).t() @ features(x).tanh() / x.size(0),
    "losses": losses,
    "merged": merged,
    "over time": over_time,
    "merged rows": lambda x: x.view(-1, x.shape[-1]).softmax(1).view_as(x) + x.flatten(0, 1).sum(),
    "turned": lambda x: x.transpose(0, 1).tanh().transpose(0, 1) + x.movedim(0, -1).mean(),
    "new": lambda x: x + x.new_zeros(x.size(0), 1, 1, 1) + torch.ones(x.size(0), 1, 1, 1).double(),
    "numbers": lambda x: x / x.size(0) + x.shape[0] * x.square(),
    "expanded": lambda x: x.mean((1, 2), True).expand(x.size(0), 3, 2, -1) * x[:1].expand(
        x.size(0), -1, -1, -1)[:, :, :2],
    "masked": lambda x: x.masked_fill(x > 0.1, 0.1) * (x.amax((1, 2, 3), True) > 0.3),
    "where": lambda x: torch.where(features(x)[..., None, None] > 0, x, -x.mean(0, True)),
    "batch norm": lambda x: F.batch_norm(x, None, None, training=True),
    "instance norm": lambda x: F.instance_norm(x) + F.layer_norm(x, x.shape[2:]),
    "attention over images": lambda x: F.scaled_dot_product_attention(
        features(x), features(x).tanh(), features(x)
    ),
    "attention": lambda x: F.scaled_dot_product_attention(x, x.tanh(), x),
    "complex": lambda x: torch.view_as_real(torch.complex(x, x.tanh()) * 1j).sum(-1),
    "spectrum": lambda x: torch.fft.ifft(torch.fft.fft(x, dim=0) * 2, dim=0).real,
    "interpolated": lambda x: F.interpolate(x, scale_factor=2) + F.pad(x, (1, 3, 0, 4)).mean(),
    "several": lambda x: {"all": x, "means": (features(x), x.mean((0, 2, 3)), x.sum())},
    "written": lambda x: x.clone().index_fill(0, torch.tensor([1]), 0.5).relu_(),
}  # fmt: skip


TAKEN_APART = {
    "length": lambda x: x / len(x),
    "unbound": lambda x: torch.stack([image * 2 for image in x.unbind(0)]),
}
"""What fixes the number of images while it is read."""


@pytest.mark.parametrize("name", TAKEN_APART)
def test_a_batch_of_one_length_only_is_not_shared(name):
    module = seeded(lambda: Between(TAKEN_APART[name]))
    plan = make_plan(module, [1.0] * world_size(), ("batch",))
    with pytest.raises(HetmpError, match="no axis that is as long as the batch"):
        hetmp.slice_model(module, plan, example_input=batch(SHAPE))


@pytest.mark.parametrize("name", WORKS)
def test_work_on_images(name):
    """By weights of which one may be zero; then of batches of other sizes, one smaller than P."""
    number = list(WORKS).index(name)
    module = seeded(lambda: Between(WORKS[name]))
    schemes = (("batch",), ("filters", "batch"), ("batch",))[number % 3]
    plan = make_plan(module, pick_weights(number), schemes, turned=bool(number % 2))
    model, reference = compare_training(module, plan, SHAPE, steps=1, example=True)
    for images in (2, 7):
        x = batch((images, *SHAPE[1:]), 3)
        torch.testing.assert_close(model(x), reference(x), rtol=1e-13, atol=1e-10)
