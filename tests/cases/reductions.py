"""Reductions, over channels and over space."""

import torch
from torch.nn import functional as F

from helpers.functional import full, partial, sliced

SPACE = {
    "mean": sliced(lambda x: x.mean((2, 3))),
    "mean-keepdim": sliced(lambda x: x.mean([2, 3], keepdim=True)),
    "mean-function": sliced(lambda x: torch.mean(x, dim=-1)),
    "mean-batch": sliced(lambda x: x.mean(0, keepdim=True)),
    "sum": sliced(lambda x: x.sum(-1)),
    "sum-function": sliced(lambda x: torch.sum(x, (2, 3), keepdim=True)),
    "amax": sliced(lambda x: x.amax((2, 3))),
    "amin": sliced(lambda x: x.amin(dim=(-1, -2), keepdim=True)),
    "amax, amin": sliced(lambda x: torch.amax(x, 2) - torch.amin(x, dim=2)),
    "std": sliced(lambda x: x.std((2, 3))),
    "var": sliced(lambda x: x.var(dim=(2, 3), unbiased=False, keepdim=True)),
    "std, var": sliced(lambda x: torch.std(x, dim=3) + torch.var(x, 3, False)),
    "norm": sliced(lambda x: x.norm(dim=(2, 3))),
    "norm-function": sliced(lambda x: torch.norm(x, 1, dim=2, keepdim=True)),
    "logsumexp": sliced(lambda x: x.logsumexp((2, 3))),
    "logsumexp, prod": sliced(lambda x: torch.logsumexp(x, 2) * torch.prod(x, dim=2)),
    "prod": sliced(lambda x: x.prod(3, keepdim=True)),
    "all, any": sliced(
        lambda x: x * (x > 0.3).all(3, True) + x * (x > 0.7).any(dim=3, keepdim=True)
    ),
    "all, any functions": sliced(
        lambda x: x.mean(2) * torch.all(x > 0.3, dim=2) * torch.any(x > 0.7, 2)
    ),
    "batch norm": sliced(
        lambda x: F.batch_norm(x, None, None, training=True, eps=1e-3), any_batch=False
    ),
    "batch norm of computed slopes": sliced(
        lambda x, y: F.batch_norm(
            x,
            y.mean((0, 2, 3)).detach(),
            y.std((0, 2, 3)).detach(),
            x.amax((0, 2, 3)),
            bias=y.amin((0, 2, 3)),
        ),
        any_batch=False,
    ),
    "batch norm of slopes alone": sliced(
        lambda x: F.batch_norm(x, None, None, x.mean((0, 2, 3)), None, True), any_batch=False
    ),
    "weight norm": sliced(
        lambda x: torch._weight_norm(x, x.amax((0, 2, 3), keepdim=True), 1), any_batch=False
    ),
    "weight norm of images": full(
        lambda x: torch._weight_norm(x, x.amax((1, 2, 3), keepdim=True), 0)
    ),
    "mean-of-one-channel": sliced(lambda x: x.mean((2, 3)), channels=(1, 1)),
}


CHANNELS = {
    "sum": partial(lambda x: x.sum(1)),
    "sum-keepdim": partial(lambda x: x.sum(dim=1, keepdim=True), channels=(7, 7)),
    "sum-axis": partial(lambda x: x.sum(axis=1)),
    "sum-function": partial(lambda x: torch.sum(x, [1, 2])),
    "sum-of-a-mask": partial(lambda x: (x > 0.5).double().sum(1)),
    "sum-then-work": full(lambda x: x.sum(1, keepdim=True).square().tanh()),
    "mean": partial(lambda x: x.mean(1)),
    "mean-two-channels": partial(lambda x: x.mean(1, keepdim=True), channels=(2, 2)),
    "mean-and-space": partial(lambda x: x.mean((1, -1))),
    "mean-function": partial(lambda x: torch.mean(input=x, dim=1)),
    "mean-dtype": partial(lambda x: x.float().mean(1, dtype=torch.float64)),
    "mean-of-a-joint": partial(lambda x, y: torch.cat([x, y], 1).mean(1), channels=(5, 3)),
    "mean-last": partial(lambda x: x.permute(0, 2, 3, 1).mean(-1)),
    "amax": full(lambda x: x.amax(1)),
    "std": full(lambda x: x.std(1, keepdim=True)),
    "var": full(lambda x: torch.var(x, 1)),
    "norm": full(lambda x: x.norm(dim=1)),
    "norm-unit": sliced(lambda x: x / x.norm(dim=1, keepdim=True)),
    "logsumexp": full(lambda x: x.logsumexp(1)),
    "prod": full(lambda x: x.prod(1)),
    "any": full(lambda x: x.mean(1) * (x > 0.7).double().any(1)),
}


ALL = {
    "sum": partial(lambda x: x.sum()),
    "mean": partial(lambda x: x.mean(), channels=(5, 5)),
    "mean-function": partial(lambda x: torch.mean(x)),
    "mean-by-sample": partial(lambda x: x.mean((1, 2, 3)), channels=(2, 2)),
    "amax": full(lambda x: x.amax()),
    "std": full(lambda x: x.std()),
    "std-biased": full(lambda x: x.std(False)),
    "var": full(lambda x: torch.var(x)),
    "norm": full(lambda x: x.norm()),
    "norm-function": full(lambda x: torch.norm(x, p=1)),
    "prod": full(lambda x: x[..., 0].prod()),
    "logsumexp": full(lambda x: x.logsumexp((0, 1, 2, 3))),
    "all": full(lambda x: x.mean() * (x > 0).double().all()),
}


POOLED = {
    "1d": sliced(
        lambda x: torch.cat(
            [
                F.max_pool1d(x.flatten(2), 2),
                F.avg_pool1d(x.flatten(2), 3, stride=2, padding=1),
                F.lp_pool1d(x.flatten(2), 2, 2),
                F.adaptive_max_pool1d(x.flatten(2), 12),
                F.adaptive_avg_pool1d(x.flatten(2), output_size=12),
            ],
            1,
        )
    ),
    "2d": sliced(
        lambda x: torch.cat(
            [
                F.max_pool2d(x, 2, ceil_mode=True),
                F.avg_pool2d(x, kernel_size=2, count_include_pad=False),
                F.lp_pool2d(x, 3, (2, 2)),
                F.adaptive_max_pool2d(x, (2, 3)),
                F.adaptive_avg_pool2d(x, (2, 3)),
            ],
            1,
        ),
        channels=(5, 5),
    ),
    "3d": sliced(
        lambda x: torch.cat(
            [
                F.max_pool3d(x.unsqueeze(2), (1, 2, 2)),
                F.avg_pool3d(x.unsqueeze(2), (1, 2, 2)),
                F.lp_pool3d(x.unsqueeze(2), 2, (1, 2, 2)),
                F.adaptive_max_pool3d(x.unsqueeze(2), (1, 2, 3)),
                F.adaptive_avg_pool3d(x.unsqueeze(2), (1, 2, 3)),
            ],
            1,
        ),
        channels=(2, 2),
    ),
    "with-indices": sliced(lambda x: F.max_pool2d(x, 2, return_indices=True)[0]),
    "channels-last": full(lambda x: F.avg_pool2d(x.permute(0, 2, 3, 1), 2)),
    "interpolate": sliced(lambda x: F.interpolate(x, scale_factor=2)),
    "interpolate-size": sliced(
        lambda x, y: F.interpolate(F.max_pool2d(x, 2), size=y.shape[2:], mode="bilinear") * y
    ),
    "interpolate-sizes": sliced(
        lambda x: F.interpolate(x, (x.size(2) * 2, 5), mode="bicubic", align_corners=True)
    ),
    "pad": sliced(lambda x: F.pad(x, (1, 0, 2, 1))),
    "pad-reflect": sliced(lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"), channels=(2, 2)),
    "pad-value": sliced(lambda x: F.pad(x, [0, x.size(2) % 3], value=0.5)),
    "pad-channels": full(lambda x: F.pad(x, (0, 0, 0, 0, 1, 2))),
    "pixel-shuffle": sliced(lambda x: F.pixel_shuffle(x, 2)),
    "pixel-unshuffle": sliced(lambda x: F.pixel_unshuffle(x, 2), channels=(3, 3)),
    "channel-shuffle": sliced(lambda x: F.channel_shuffle(x, 4)),
    "softmax": full(lambda x: F.softmax(x, dim=1)),
    "softmax-torch": full(lambda x: torch.softmax(x, -3) * x.softmax(dim=1)),
    "softmax-space": sliced(lambda x: F.softmax(x, -1) * torch.softmax(x, 2) * x.softmax(-1)),
    "log-softmax-space": sliced(
        lambda x: F.log_softmax(x.flatten(2), 2) + torch.log_softmax(x.flatten(2), -1)
    ),
    "log-softmax": full(lambda x: x.log_softmax(1)),
    "softmin-space": sliced(lambda x: F.softmin(x, dim=3)),
}


TABLES = {
    "over space": SPACE,
    "over channels": CHANNELS,
    "over all": ALL,
    "pooled": POOLED,
}


CASES = {f"{kind}: {name}": case for kind, cases in TABLES.items() for name, case in cases.items()}
