"""Functions and layers that name an axis."""

import torch
from torch import nn
from torch.nn import functional as F

from helpers.functional import full, partial, sliced


def found_in_space(x):
    """The indices of extremes, as factors."""
    found = [x.argmax(3), torch.argmin(x, dim=-1), x.argsort(2)[..., 0], (x > 0.5).count_nonzero(3)]
    return torch.stack([one % 3 for one in found], 3) * x[..., :4]


def extremes(x):
    parts = [x.max(3)[0], torch.min(x, -1)[0], x.median(dim=3)[0], x.topk(2)[0][..., 1]]
    return torch.stack([*parts, x.kthvalue(2, 3)[0], torch.max(x, x.flip(3))[..., 0]], 3)


def with_places(x):
    values, places = x.sort(dim=2, descending=True)
    return values * (places + 1)


def running(x):
    sums = torch.cumsum(x, 2) + x.cumprod(dim=3) + x.logcumsumexp(2)
    return sums + x.cummax(2)[0] - torch.cummin(x, 3)[0]


def turned(x):
    return x.flip(2, 3) * x.flip([2]) + torch.flip(x, (-1,)) * x.flip(dims=(3,)) - x.flip(2)


def rolled(x):
    return x.roll(1, 2) * torch.roll(x, shifts=(1, -2), dims=(2, 3))


def normalized(x):
    return (
        F.normalize(x, dim=-1)
        + F.normalize(x, 1, 2)
        + torch.linalg.vector_norm(x, dim=3)[..., None]
    )


def moments(x):
    variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True)
    deviation, _ = torch.std_mean(x, 2)
    return (x - mean) / variance.sqrt() + deviation.unsqueeze(2)


ONE_LEFT = "argmax argmin max min median nanmedian count_nonzero kthvalue"


ALL_LEFT = "sort argsort cumsum cumprod cummax cummin logcumsumexp topk diff flip roll"


PAIRS = "max min median nanmedian kthvalue sort cummax cummin topk"


def both_forms(x):
    """Every name as a function and as a method, the first of what it gives along the last axis."""
    total = x
    for name in (ONE_LEFT + " " + ALL_LEFT).split():
        told = {"topk": (2, 3), "kthvalue": (2, 3), "roll": (1, 3), "diff": (1, 3), "flip": ([3],)}
        for form in (getattr(torch, name), lambda x, *a, n=name: getattr(x, n)(*a)):
            given = form(x, *told.get(name, (3,)))
            given = given[0] if name in PAIRS.split() else given
            total = total + (given.unsqueeze(3) if name in ONE_LEFT.split() else given[..., :1])
    return (total / 40).tanh()


ALONG = {
    "both-forms": sliced(both_forms),
    "indices": sliced(found_in_space),
    "extremes": sliced(extremes),
    "sort": sliced(with_places),
    "running": sliced(running),
    "turned": sliced(turned),
    "rolled": sliced(rolled),
    "normalized": sliced(normalized),
    "moments": sliced(moments),
    "difference, windows": sliced(lambda x: x.diff(dim=3).unfold(2, 3, 1).mean(-1)),
    "batch": sliced(lambda x: x.cumsum(0) + torch.amax(x, 0, True)),
    "channels-cumsum": full(lambda x: x.cumsum(1)),
    "channels-max": full(lambda x: x.max(1)[0]),
    "channels-normalized": full(lambda x: F.normalize(x)),
    "channels-roll": full(lambda x: x.roll(1, 1)),
    "all-rolled": full(lambda x: torch.roll(x, 2)),
    "all-max": full(lambda x: torch.max(x)),
    "max-of-two": sliced(lambda x, y: torch.max(x, y)),
}


REPEATED = {
    "repeat-space": sliced(lambda x: x.mean(2, keepdim=True).repeat(1, 1, 3, 2)),
    "repeat-channels": sliced(lambda x: x.repeat((1, 2, 1, 1)), channels=(5, 5)),
    "repeat-in-front": sliced(lambda x: x[0].repeat(x.size(0), 2, 1, 1)),
    "tile": sliced(lambda x: x.tile((2, 1)) * torch.tile(x, (1, 1, 2, 1)), channels=(3, 3)),
    "tile-channels": sliced(lambda x: torch.tile(x, dims=(3, 1, 1)), channels=(3, 3)),
    "repeat-no-channels": full(lambda x: x.mean(1, keepdim=True).repeat(1, 3, 1, 1)),
    "interleave": sliced(lambda x: x.repeat_interleave(2, dim=1), channels=(5, 5)),
    "interleave-space": sliced(lambda x: torch.repeat_interleave(x, 2, -1)),
    "expand-as": sliced(lambda x, y: x.mean((2, 3), keepdim=True).expand_as(y)),
    "expand-full-as": sliced(lambda x: x.mean(1, keepdim=True).tanh().expand_as(x)),
    "new-tensors": sliced(
        lambda x: x * x.new_ones(x.size(1), 1, 1) + x.new_zeros(8, 4, 6) - x.new_full((6,), 0.5)
    ),
}


SHAPED = {
    "reshape-as": sliced(lambda x, y: x.flatten(2).reshape_as(y)),
    "reshape-as-one": sliced(
        lambda x: x.permute(0, 2, 3, 1).flatten(0, 2).reshape_as(x.movedim(1, 3))
    ),
    "view-as-full": sliced(
        lambda x: x.flatten(2).view_as(x.mean(1, True).tanh().repeat(1, 8, 1, 1))
    ),
    "view-as-itself": sliced(lambda x: x.view_as(x)),
    "full-view-as": full(lambda x: x.amax(1).view_as(x[:, 0])),
}


PATCHES = {
    "unfold": sliced(lambda x: F.unfold(x, 2), channels=(3, 3)),
    "unfold-fold": sliced(
        lambda x: F.fold(F.unfold(x, (2, 3), padding=1).square(), (4, 6), (2, 3), padding=1)
    ),
    "fold": sliced(lambda x: F.fold(x.flatten(2), (5, 7), 2), channels=(12, 12)),
    "fold-to-one-channel": sliced(lambda x: F.fold(x.flatten(2), (5, 7), 2), channels=(4, 4)),
    "fold-of-space": full(lambda x: F.fold(x[..., 0].transpose(1, 2), (3, 5), 2)),
}


COMPARED = {
    "mse": partial(lambda x, y: F.mse_loss(x, y)),
    "l1-sum": partial(lambda x, y: F.l1_loss(x, y, reduction="sum")),
    "smooth-l1-few": partial(lambda x, y: F.smooth_l1_loss(x, y, beta=0.1), channels=(2, 2)),
    "huber": sliced(lambda x, y: F.huber_loss(x, y, reduction="none", delta=0.2)),
    "mse-detached": partial(lambda x, y: F.mse_loss(x, target=y.detach())),
    "mse-of-full": partial(lambda x: F.mse_loss(x, x.mean(1, keepdim=True).tanh().expand_as(x))),
    "cosine-space": sliced(lambda x, y: F.cosine_similarity(x, y, dim=-1)),
    "cosine": full(lambda x, y: torch.cosine_similarity(x, y)),
    "glu": sliced(lambda x: F.glu(x, 1)),
    "glu-last": sliced(lambda x: F.glu(x)),
    "local-response": full(lambda x: F.local_response_norm(x, 2)),
}


TABLES = {
    "along": ALONG,
    "repeated": REPEATED,
    "shaped": SHAPED,
    "patches": PATCHES,
    "compared": COMPARED,
}


CASES = {f"{kind}: {name}": case for kind, cases in TABLES.items() for name, case in cases.items()}


class Layers(nn.Module):
    """Layers that take two activations, and patches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 1), nn.Conv2d(3, 6, 1)
        self.gate = nn.GLU(1)
        self.patches, self.image = nn.Unfold(2), nn.Fold((4, 6), 2)
        self.losses = nn.ModuleList(
            [nn.MSELoss(), nn.L1Loss(reduction="sum"), nn.HuberLoss(), nn.SmoothL1Loss()]
        )
        self.alike = nn.CosineSimilarity(dim=3)
        self.after = nn.Conv2d(6, 3, 1)

    def forward(self, x):
        one, two = self.gate(self.first(x)), self.second(x).sigmoid()
        image = self.image(self.patches(one).square())
        losses = [loss(one, two) for loss in self.losses]
        return self.after(image * self.alike(one, two).unsqueeze(3)), *losses
