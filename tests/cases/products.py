"""Products of matrices and attention."""

import torch
from torch.nn import functional as F

from helpers.functional import full, partial, sliced


def heads(x, width=2):
    """(n, heads * width, h, w) -> (n, heads, h * w, width)."""
    return x.flatten(2).unflatten(1, (-1, width)).transpose(2, 3)


def tokens(x):
    """(n, c, h, w) -> (n, h * w, c)."""
    return x.flatten(2).transpose(1, 2)


def rows(x):
    """(n, c, h, w) -> (n, c, h * w)."""
    return x.flatten(2)


def beside(x):
    """A square activation of which nothing is cut, (n, 4, 4): a full operand."""
    return x.mean(1, keepdim=True).tanh()[:, 0, :, :4]


def turned(x):
    """The last two axes change places."""
    return x.transpose(-1, -2)


def in_space(x):
    """A full (4, 6): nothing of it is cut."""
    return x.mean((0, 1)).tanh()


MATRICES = {
    "batch": sliced(lambda x, y: x @ turned(y)),
    "batch-function": sliced(lambda x, y: torch.matmul(turned(x), other=y), channels=(2, 2)),
    "batch-method": sliced(lambda x, y: turned(x).matmul(y), channels=(5, 1)),
    "batch-and-no-batch": sliced(lambda x: in_space(x) @ turned(x)),
    "batch-and-vector": sliced(lambda x: x.matmul(in_space(x)[0])),
    "vector-and-batch": sliced(lambda x: torch.matmul(in_space(x)[:, 0], x)),
    "heads": sliced(lambda x, y: (heads(x) @ turned(heads(y))).softmax(-1) @ heads(x * y)),
    "rows": sliced(lambda x: rows(x) @ turned(rows(x).mean(1, keepdim=True).tanh())),
    "rows-of-both": sliced(lambda x, y: rows(x) @ turned(rows(y)), channels=(7, 5)),
    "rows-bmm": sliced(lambda x, y: torch.bmm(rows(x), mat2=tokens(y))),
    "rows-bmm-method": sliced(lambda x: rows(x).bmm(tokens(x)), channels=(3, 3)),
    "rows-mm": sliced(lambda x: torch.mm(x.mean((0, 2)), in_space(x).t()), any_batch=False),
    "rows-mv": sliced(lambda x: torch.mv(x.mean((0, 2)), in_space(x)[0])[None], any_batch=False),
    "rows-mm, mv": sliced(
        lambda x: (x[0, :, 0].mm(in_space(x).t())).mv(in_space(x)[:, 0])[None], any_batch=False
    ),
    "columns": sliced(lambda x: in_space(x).t() @ x.mean(3).transpose(1, 2)),
    "columns-of-a-vector": sliced(lambda x: in_space(x).flatten() @ tokens(x)),
    "summed": partial(lambda x, y: tokens(x) @ rows(y)),
    "summed-few": partial(lambda x: torch.bmm(tokens(x), rows(x).square()), channels=(2, 2)),
    "summed-vectors": partial(lambda x, y: x.mean((0, 2, 3)).matmul(y.mean((0, 2, 3)))),
    "summed-and-full": partial(lambda x: tokens(x) @ in_space(x).flatten()[:8]),
    "added-rows": sliced(lambda x, y: torch.baddbmm(y[..., 0], x[:, :, 0], turned(x.mean(1)))),
    "added-batch": sliced(lambda x, y: torch.baddbmm(x[0][:, :1], turned(x[0]), y[0], beta=0.5)),
    "added-summed": partial(
        lambda x, y: x.amax((1, 2)).unsqueeze(2).baddbmm(turned(x[:, :, 0]), y[:, :, 1], alpha=0.3)
    ),
}


E_ = torch.einsum


EINSUMS = {
    "batch": sliced(lambda x, y: E_("nchw,nckw->nchk", x, y)),
    "batch-list": sliced(lambda x, y: E_("n C h w, n C k w -> n C h k", [x, y])),
    "rows-of-both": sliced(lambda x, y: E_("nchw,ndhw->ncd", x, y), channels=(7, 3)),
    "columns": sliced(lambda x: E_("hk,nchw->nkwc", in_space(x), x)),
    "summed": partial(lambda x, y: E_("nchw,nckl->nhwkl", x, y)),
    "summed-implicit": partial(lambda x, y: E_("bchw,bchk", x, y), channels=(2, 2)),
    "summed-alone": partial(lambda x: E_("nchw,nhw->nhw", x, x.amax(1))),
    "summed-dots": partial(lambda x, y: E_("nc...,nc...->n...", x, y)),
    "dots": sliced(lambda x, y: E_("...hw,...kw", x, y)),
    "dots-of-unlike-length": sliced(lambda x: E_("...w,w", x, in_space(x)[0])),
    "three": partial(lambda x, y: E_("nchw,nchw,nc->nhw", x, y, x.mean((2, 3)))),
    "one": sliced(lambda x: E_("nchw->nwc", x)),
    "with-itself": sliced(lambda x: E_("nchw,nchw->nc", x, x)),
    "rows-with-itself": full(lambda x: E_("nchw,ndhw->ncd", x, x)),
    "diagonal": full(lambda x: E_("ncc->nc", x.mean(3)), shape=(3, 3, 8, 6)),
}


def attention(*operands, **options):
    """Of (n, heads, tokens, width)."""
    return F.scaled_dot_product_attention(*operands, **options)


def masked_attention(x, y):
    """Each head has a mask of its own."""
    return attention(heads(x), heads(y), heads(x), attn_mask=heads(y)[..., :1].sigmoid())


ATTENTION = {
    "heads": sliced(lambda x, y: attention(heads(x), heads(y), value=heads(x * y))),
    "one-head": sliced(
        lambda x: attention(heads(x, 4), heads(x, 4), heads(x)[:, :1]), channels=(4, 4)
    ),
    "heads-causal": sliced(
        lambda x: attention(heads(x), heads(x), heads(x), is_causal=True, scale=0.7)
    ),
    "heads-masked": sliced(masked_attention),
    "heads-masked-alike": sliced(
        lambda x: attention(heads(x), heads(x), heads(x), in_space(x).flatten()[None])
    ),
    "rows": sliced(
        lambda x, y: attention(rows(x), tokens(x).flatten(1)[:, None, :24], rows(y.amax(1, True)))
    ),
    "width-of-values": sliced(
        lambda x: attention(in_space(x).t(), in_space(x).t(), x.mean((0, 2)).t()), any_batch=False
    ),
    "width": sliced(lambda x, y: attention(tokens(x), tokens(y), tokens(x * y))),
}


TABLES = {"matrices": MATRICES, "einsum": EINSUMS, "attention": ATTENTION}


CASES = {f"{kind}: {name}": case for kind, cases in TABLES.items() for name, case in cases.items()}
