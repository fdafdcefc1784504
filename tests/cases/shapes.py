"""Functions that change the shape."""

import torch

from helpers.functional import full, sliced


def shuffled_by_hand(x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def pixels_by_hand(x):
    n, c, h, w = x.size()
    x = x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c // 4, h * 2, w * 2)


def blocks_by_hand(x):
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(n, c * 4, h // 2, w // 2)


RESHAPED = {
    "view-size": sliced(lambda x: x.view(x.size(0), -1)),
    "view-shape": sliced(lambda x: x.view(x.shape[0], -1)),
    "view-features": sliced(lambda x: x.view(-1, 8 * 4 * 6)),
    "view-into-the-batch": full(lambda x: x.view(-1, 24), any_batch=False),
    "view-two-blocks": sliced(lambda x: x.view(x.size(0), 2, 16, 6)),
    "view-half-blocks": sliced(lambda x: x.view(x.size(0), 16, 12)),
    "view-groups": sliced(lambda x: x.view(x.size(0), 4, 2, x.size(2), x.size(3))),
    "view-ones": sliced(lambda x: x.view(x.size(0), 1, 8, 1, 24)),
    "view-of-pixels": sliced(lambda x: x.mean((2, 3)).view(x.size(0), 8, 1, 1)),
    "view-prime": sliced(lambda x: x.view(x.size(0), -1), channels=(7, 7)),
    "view-two-channels": sliced(lambda x: x.view(x.size(0), -1), channels=(2, 2)),
    "view-a-new-first-axis": sliced(lambda x: x.view(1, x.size(0), 8, 4, 6).squeeze(0)),
    "reshape": sliced(lambda x: torch.reshape(x, (x.shape[0], 8, -1))),
    "reshape-shape": sliced(lambda x: x.reshape(x.shape[:2] + torch.Size([24]))),
    "reshape-channels-inside": full(lambda x: x.transpose(1, 2).reshape(x.size(0), 32, 6)),
    "flatten": sliced(lambda x: x.flatten(1)),
    "flatten-function": sliced(lambda x: torch.flatten(x, 1, 2)),
    "flatten-space": sliced(lambda x: x.flatten(start_dim=-2)),
    "unflatten": sliced(lambda x: x.unflatten(1, (2, 4))),
    "unflatten-function": sliced(lambda x: torch.unflatten(x, 1, (4, -1))),
    "unflatten-space": sliced(lambda x: x.unflatten(-1, (2, 3)), channels=(5, 5)),
    "channel-shuffle": sliced(shuffled_by_hand),
    "pixel-shuffle": sliced(pixels_by_hand, channels=(20, 20)),
    "pixel-shuffle-to-few": full(pixels_by_hand),
    "pixel-unshuffle": sliced(blocks_by_hand, channels=(3, 3)),
}


MOVED = {
    "permute": sliced(lambda x: x.permute(0, 2, 3, 1)),
    "permute-function": sliced(lambda x: torch.permute(x, (0, 3, 1, 2))),
    "transpose": sliced(lambda x: x.transpose(1, -1)),
    "transpose-space": sliced(lambda x: torch.transpose(x, 2, 3)),
    "swapaxes": sliced(lambda x: x.swapaxes(1, 2)),
    "swapaxes-function": sliced(lambda x: torch.swapaxes(x, 1, 2)),
    "swapdims": sliced(lambda x: x.swapdims(3, 1)),
    "movedim": sliced(lambda x: x.movedim(1, -1)),
    "movedim-function": sliced(lambda x: torch.movedim(x, (1, 2), (2, 3))),
    "t": sliced(lambda x: torch.t(x.mean((2, 3)).t().relu())),
    "unsqueeze": sliced(lambda x: x.unsqueeze(1)),
    "unsqueeze-last": sliced(lambda x: torch.unsqueeze(x, -1)),
    "squeeze": sliced(lambda x: x.mean(2, keepdim=True).squeeze(2)),
    "squeeze-function": sliced(lambda x: torch.squeeze(x.mean((2, 3), keepdim=True), (2, 3))),
    "squeeze-all": full(lambda x: x.mean((2, 3), keepdim=True).squeeze(), any_batch=False),
    "squeeze-one-channel": full(lambda x: x.squeeze(1), channels=(1, 1)),
    "squeeze-some-channels": full(lambda x: x.squeeze(1), channels=(3, 3)),
    "squeeze-channels-among": full(lambda x: x.mean(2, keepdim=True).squeeze((1, 2))),
    "expand": sliced(lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 6)),
    "expand-sizes": sliced(lambda x: x.mean(3, keepdim=True).expand(x.size(0), 8, 4, 5)),
    "expand-shape": sliced(lambda x, y: x.mean(3, keepdim=True).expand(y.shape)),
    "expand-keyword": sliced(lambda x: x.mean(3, keepdim=True).expand(size=(-1, 8, 4, 2))),
    "expand-in-front": sliced(lambda x: x.expand(2, -1, -1, -1, -1).mean(0)),
    "expand-between": sliced(lambda x: x.unsqueeze(2).expand(-1, -1, 3, 4, 6)),
    "expand-channels": full(lambda x: x.expand(-1, 5, -1, -1), channels=(1, 1)),
    "expand-summands": full(lambda x: x.mean(1, keepdim=True).expand(-1, 8, -1, -1)),
}


def halves(x):
    one, two = x.chunk(2, 1)
    return torch.cat([two, one.square()], 1)


def unlike_parts(x):
    one, two, three = x.split([1, 5, 2], dim=1)
    return torch.cat([two, one * three.sum(1, keepdim=True)], 1)


def gated(x):
    one, two = torch.chunk(x, 2, dim=1)
    return one * two.sigmoid()


PIECES = {
    "chunk": sliced(halves),
    "chunk-gate": sliced(gated),
    "chunk-gate-of-primes": sliced(lambda x: x.chunk(3, 1)[2], channels=(7, 7)),
    "chunk-space": sliced(lambda x: x.chunk(2, dim=-1)[0] * x.chunk(2, -1)[1]),
    "split-sizes": sliced(unlike_parts),
    "split-length": sliced(lambda x: torch.split(x, 3, 1)[-1], channels=(11, 8)),
    "split-method": sliced(lambda x: x.split(4, 1)[1] + x.split((4, 4), dim=1)[0]),
    "split-space": sliced(lambda x: x.split((1, 3), 2)[1]),
    "tensor-split": sliced(lambda x: x.tensor_split(3, 1)[0]),
    "tensor-split-function": sliced(lambda x: torch.tensor_split(x, (2, 5), dim=1)[1]),
    "unbind-space": sliced(lambda x: x.unbind(2)[1] * x.unbind(-2)[3]),
    "unbind-batch": sliced(lambda x: x.unbind()[0].unsqueeze(0)),
    "unbind-channels": full(lambda x: torch.unbind(x, dim=1)[3]),
    "narrow": sliced(lambda x: x.narrow(1, 2, 5)),
    "narrow-function": sliced(lambda x: torch.narrow(x, dim=1, start=0, length=3)),
    "narrow-from-behind": sliced(lambda x: x.narrow(-3, -4, 3)),
    "narrow-space": sliced(lambda x: x.narrow(2, 1, 2)),
    "slice": sliced(lambda x: x[:, 2:6]),
    "slice-first": sliced(lambda x: x[:, :1]),
    "slice-last": sliced(lambda x: x[:, -3:]),
    "slice-beyond": sliced(lambda x: x[:, 5:100]),
    "slice-inside": sliced(lambda x: x[:, 1:-1, 0, ::2]),
    "slice-steps": full(lambda x: x[:, ::2]),
    "slice-space": sliced(lambda x: x[..., 1:-1]),
    "slice-behind-ellipsis": sliced(lambda x: x[..., 2:7, :, 1]),
    "slice-by-size": sliced(lambda x: x[:, :, x.size(2) // 2 :]),
    "slice-channels-by-size": full(lambda x: x[:, x.size(1) // 2 :]),
    "index-channel": full(lambda x: x[:, 1]),
    "index-space": sliced(lambda x: x[:, :, 0]),
    "index-both": sliced(lambda x: x[:, :, -1, 2]),
    "index-batch": sliced(lambda x: x[0].unsqueeze(0)),
    "index-list": full(lambda x: x[:, :, [0, 2]]),
    "index-mask": full(lambda x: x[:, torch.tensor([1, 3])]),
    "new-axis": sliced(lambda x: x[:, None]),
    "new-axes": sliced(lambda x: x[:, None, 2:, None, 1]),
    "new-last-axis": sliced(lambda x: x[..., None]),
    "part-of-a-part": sliced(lambda x: x[:, 1:7][:, 2:].chunk(2, 1)[1]),
    "whole": sliced(lambda x: x[:]),
}


JOINED = {
    "cat": sliced(lambda x, y: torch.cat([x, y], 1), channels=(8, 5)),
    "cat-three": sliced(lambda x, y: torch.cat((y, x, y), dim=-3), channels=(3, 7)),
    "cat-one": sliced(lambda x: torch.cat([x], 1)),
    "cat-few": sliced(lambda x, y: torch.cat([x, y], 1), channels=(1, 2)),
    "cat-rows": sliced(lambda x, y: torch.cat([x, y], 2)),
    "cat-columns": sliced(lambda x, y: torch.concat((x, y[..., :2]), dim=-1)),
    "cat-batch": sliced(lambda x, y: torch.cat([x, y])),
    "cat-last": sliced(
        lambda x, y: torch.concatenate([x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)], dim=3),
        channels=(4, 7),
    ),
    "cat-with-a-mean": sliced(lambda x, y: torch.cat([x, y.mean(1, keepdim=True)], 1)),
    "cat-then-cut": sliced(lambda x, y: torch.cat([x, y], 1)[:, 3:12]),
    "cat-then-halves": sliced(lambda x, y: halves(torch.cat([x, y], 1)), channels=(5, 7)),
    "cat-of-unlike-axes": full(
        lambda x, y: torch.cat([x[:, :4], y.transpose(1, 2)[:, :4]], 2), shape=(3, 3, 8, 6)
    ),
    "cat-of-a-tuple": sliced(lambda x: torch.cat(x.chunk(2, 1), 2)),
    "stack": sliced(lambda x, y: torch.stack([x, y], 1)),
    "stack-behind": sliced(lambda x, y: torch.stack((x, y), dim=2)),
    "stack-last": sliced(lambda x, y: torch.stack([y, x, y], -1)),
    "stack-first": sliced(lambda x, y: torch.stack([x, y]).mean(0)),
    "stack-taking-turns": sliced(lambda x, y: torch.stack([x, y], 2).flatten(1, 2)),
    "stack-in-rows": full(lambda x, y: torch.stack([x, y], 1).flatten(1, 2)),
}


TABLES = {"reshaped": RESHAPED, "moved": MOVED, "pieces": PIECES, "joined": JOINED}


CASES = {f"{kind}: {name}": case for kind, cases in TABLES.items() for name, case in cases.items()}
