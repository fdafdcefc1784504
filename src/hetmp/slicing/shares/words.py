"""What is said of an operation that cannot be right on a rank's share."""

from typing import NoReturn

from hetmp.core.errors import HetmpError
from hetmp.core.state import Partial
from hetmp.slicing.shares.share import Share

_DRAWS = (
    "hetmp.init_(model, function) gives values drawn for the whole tensor, hetmp.randn_like noise"
)
_NORMS = ("norm", "vector_norm", "matrix_norm", "_foreach_norm", "_get_total_norm")


def refuse_draw(title: str, share: Share) -> NoReturn:
    """Refuse random numbers for a *share*.

    Raises:
        HetmpError: always.
    """
    raise HetmpError(
        f"{title} on {_described(share)} would draw on every rank for itself, and the same numbers "
        f"where the ranks are seeded alike: {_DRAWS}"
    )


def refuse(title: str, share: Share) -> NoReturn:
    """Refuse an operation whose result is not a share of the whole tensor's.

    Raises:
        HetmpError: always.
    """
    what = _described(share)
    if isinstance(share.state, Partial):
        raise HetmpError(
            f"{title} of {what} is not that of the whole sum, nor a part of it: take hetmp.norm of "
            "the parameter (its 1-norm, or a square) or hetmp.whole, which are whole on every rank"
        )
    name = title.removeprefix("linalg_")
    if name in _NORMS and share.title.startswith("the gradient"):
        remedy = (
            "hetmp.clip_grad_norm_(model, max_norm) clips by the norm of all gradients, "
            "hetmp.norm(p.grad) is that of a whole one"
        )
    elif name in _NORMS:
        remedy = "hetmp.norm(p) is that of the whole parameter"
    elif "non_finite_check" in title:
        remedy = "use hetmp.optim.GradScaler, which agrees over the ranks"
    else:
        remedy = "compute it of hetmp.whole(p), the whole tensor"
    raise HetmpError(f"{title} of {what} is not the whole tensor's, nor a share of it: {remedy}")


def _described(share: Share) -> str:
    if isinstance(share.state, Partial):
        return f"a sum over {share.title}, of which each rank has its own part,"
    rank, layout = share.origin.group.rank, share.state.layout
    return (
        f"{share.title}, of which rank {rank} holds {layout.counts[rank]} of {layout.total} along "
        f"axis {share.state.axis},"
    )
