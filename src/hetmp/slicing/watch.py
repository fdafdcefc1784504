"""The interface of observers of a step on this rank."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

from hetmp.slicing.schedule import CallStep, ProgramStep


class Watch(Protocol):
    """An observer of steps on this rank; set as ``model.hetmp.watch``."""

    def began(self) -> None:
        """Note that the first step of a forward pass begins."""

    def phase(self, name: str) -> None:
        """Note that the time from here on belongs to no step of the program."""

    def made(self, step: ProgramStep, value: Any) -> None:
        """Note that a forward step returned *value*, to whose tensors hooks may be added."""

    def parameters(self, step: CallStep) -> AbstractContextManager[None]:
        """Wrap the computation of a layer's parameter gradients apart from its input's."""
