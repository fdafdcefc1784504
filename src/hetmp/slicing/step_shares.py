"""Rows of a replicated parameter: what one rank's optimizer steps where the ranks share the steps.

``hetmp.optim.share_steps`` makes them.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from hetmp.core.partition import Layout
from hetmp.core.state import Sliced

_NAME = "hetmp_step_share"
"""The attribute of a share that says of what it is."""


@dataclass(frozen=True)
class StepShare:
    """What a rank's rows are of.

    Attributes:
        parameter: the whole, on whose memory the rows lie.
        state: how the ranks share its rows.
    """

    parameter: nn.Parameter
    state: Sliced[Layout]


def make_share(parameter: nn.Parameter, layout: Layout, rank: int) -> nn.Parameter:
    """Return the rows of *parameter* that *rank* steps, on the same memory.

    *layout* is of its first axis.
    """
    (rows,) = layout.slices(rank)
    share = nn.Parameter(parameter.detach()[rows], requires_grad=parameter.requires_grad)
    setattr(share, _NAME, StepShare(parameter, Sliced(layout, 0)))
    return share


def step_share(tensor: Tensor) -> StepShare | None:
    """Return what *tensor* is a share of; None if it is no such share."""
    share: StepShare | None = getattr(tensor, _NAME, None)
    return share


def whole_of_steps(tensor: Tensor) -> Tensor:
    """Return the whole parameter of which *tensor* is a share; *tensor* itself if it is none."""
    share = step_share(tensor)
    return tensor if share is None else share.parameter
