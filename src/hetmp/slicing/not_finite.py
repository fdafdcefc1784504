"""Finds the first value that has a number that is not finite."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetmp.exchange import plain_tensors
from hetmp.ops import tensors_in
from hetmp.slicing.model import SlicedModel
from hetmp.slicing.rows import Input, held
from hetmp.slicing.schedule import CallStep, ProgramStep
from hetmp.slicing.table import tensors_of

LOSS = "the loss itself"
"""What is named where all values of a pass are finite."""

_NOWHERE = np.iinfo(np.int64).max


class _Look:
    """Watches a forward pass for the first step whose output has a number that is not finite."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.first_bad = _NOWHERE

    def began(self) -> None:
        self.titles, self.first_bad = [], _NOWHERE

    def made(self, step: ProgramStep, value: Any) -> None:
        if self.first_bad == _NOWHERE and not all(map(is_finite, tensors_in(value))):
            self.first_bad = len(self.titles)
        self.titles.append(step.title if isinstance(step, CallStep) else step.name)

    def parameters(self, step: CallStep) -> AbstractContextManager[None]:
        return nullcontext()

    def phase(self, name: str) -> None: ...


def first_not_finite(model: SlicedModel, *inputs: Input) -> str:
    """Name the first value with a number that is not finite, the same on every rank.

    Looks at the inputs, at the parameters, and then at a forward pass in the model's mode, of
    which running statistics are a result. Collective.
    """
    group = model.hetmp.group
    own = np.array([all(is_finite(held(x)) for x in inputs)], dtype=np.int8)
    if not group.allgather(own).all():
        return "the images"
    if (name := not_finite(model, buffers=False)) is not None:
        return name
    look, before = _Look(), model.hetmp.watch
    model.hetmp.watch = look
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        model.hetmp.watch = before
    first = int(group.allgather(np.array([look.first_bad], dtype=np.int64)).min())
    return LOSS if first == _NOWHERE else f"the output of {look.titles[first]}"


def not_finite(model: SlicedModel, *, buffers: bool = True) -> str | None:
    """Return the name of the first parameter or buffer not finite on any rank. Collective.

    None, on every rank, if all are finite. With ``buffers=False``, parameters only.
    """
    tensors = tensors_of(model)
    names = [entry.name for entry in model.hetmp.table.values() if entry.parameter or buffers]
    wrong = np.array([not is_finite(tensors[name]) for name in names], dtype=np.int8)
    anywhere = model.hetmp.group.allgather(wrong).any(axis=0)
    return names[int(anywhere.argmax())] if anywhere.any() else None


def is_finite(x: Tensor) -> bool:
    """Return whether all numbers of *x* are finite."""
    with plain_tensors():
        return not x.is_floating_point() or bool(torch.isfinite(x).all())
