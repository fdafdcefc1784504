"""The parameters of a sliced model in their user's hands.

A rank holds a share of most parameters. What a user does to such a share has the effect that it
has on the whole tensor, or is refused in words: ``share`` has the classes, ``follow`` says what
an operation makes of a share, ``words`` refuses, ``values`` has what is global, ``same_draws``
compares what the ranks hold.
"""

from hetmp.slicing.shares.same_draws import SameDraws
from hetmp.slicing.shares.share import (
    CutParameter,
    CutTensor,
    Origin,
    Share,
    label,
    share_of_tensor,
)
from hetmp.slicing.shares.values import norm, rand_like, randn_like, whole

__all__ = [
    "CutParameter",
    "CutTensor",
    "Origin",
    "SameDraws",
    "Share",
    "label",
    "norm",
    "rand_like",
    "randn_like",
    "share_of_tensor",
    "whole",
]
