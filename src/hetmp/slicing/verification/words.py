"""How a difference is written for the user."""

from torch import Tensor

from hetmp.slicing.graph import Mode, at_line, users_frame


def users_place(name: str) -> str:
    """Name the operation that the user's code calls now, with its line."""
    return f"{name!r}{at_line(users_frame())}"


def shown_difference(made: object, wanted: object, far: float) -> str:
    """Say how *made* differs from what it should be, *wanted*; tensors are *far* apart."""
    if isinstance(made, Tensor) and isinstance(wanted, Tensor):
        if made.shape == wanted.shape and made.dtype == wanted.dtype and far < float("inf"):
            return f"off by {far:.1e} of its norm"
        kinds = (
            f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
            + (" with a gradient" if x.requires_grad else "")
            for x in (made, wanted)
        )
        return ", not ".join(kinds)
    shown = (_tensor_or_value(x) for x in (made, wanted))
    return ", not ".join(shown)


def _tensor_or_value(x: object) -> str:
    return "a tensor" if isinstance(x, Tensor) else "none" if x is None else repr(x)


def when(mode: Mode) -> str:
    """Return *mode* as a part of a sentence."""
    where = "in training" if mode.training else "in evaluation mode"
    return where if mode.grad else f"{where} without gradients"
