"""Looking on while a step runs on this rank."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

from hetmp.slicing.schedule import CallStep, ProgramStep


class Watch(Protocol):
    """Told of what happens in a step; set as ``model.hetmp.watch``."""

    def began(self) -> None:
        """The first step of a forward pass begins."""

    def phase(self, name: str) -> None:
        """What follows belongs to no step of the program."""

    def made(self, step: ProgramStep, value: Any) -> None:
        """A step of the forward pass has given *value*, to whose tensors hooks may be added."""

    def parameters(self, step: CallStep) -> AbstractContextManager[None]:
        """Entered while a layer's parameter gradients are computed apart from its input's."""
