"""A rank's own rows of a batch, in the place of the whole batch."""

from dataclasses import dataclass

from torch import Tensor


# Tensors compare element by element, so the equality that dataclasses offer would raise.
@dataclass(frozen=True, eq=False, repr=False)
class Rows:
    """A rank's rows of a batch, for a sliced model that needs no more of it on this rank.

    ``model.hetmp.rows(n)`` says which ones: ``model(hetmp.Rows(x[model.hetmp.rows(n)], n))`` is
    ``model(x)`` for a batch *x* of *n* images. What does not fit is refused when the model is
    called, on all ranks alike.

    Args:
        mine: (k, ...), the rows in the order of the batch. One that requires a gradient gets it:
            these rows of the gradient of the whole batch.
        n: how many images the whole batch has.
    """

    mine: Tensor
    n: int

    def __repr__(self) -> str:
        shape = tuple(self.mine.shape) if isinstance(self.mine, Tensor) else self.mine
        return f"Rows of shape {shape} of a batch of {self.n}"


Input = Tensor | Rows
"""What a model is called with: a whole tensor, or a rank's rows of one."""


def held(x: Input) -> Tensor:
    """Return the tensor of *x* that this rank holds."""
    return x.mine if isinstance(x, Rows) else x


def whole_shape(x: Input) -> tuple[int, ...]:
    """Return the shape of *x* on all ranks together."""
    return (x.n, *x.mine.shape[1:]) if isinstance(x, Rows) else tuple(x.shape)
