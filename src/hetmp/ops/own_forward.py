"""Layers that run something else on this rank than their class's ``forward``.

Such a layer stays an object of torch's own class, with its settings and its share of the tensors.
Code that selects layers by type, as for parameter groups, so selects the same on every rank, and
the same as in the unsliced module.
"""

from collections.abc import Callable, Collection
from typing import Any

from torch import nn


class OwnForward:
    """What a layer runs on this rank in the place of its class's ``forward``.

    Attributes:
        layer: the layer, whose settings are looked at whenever it runs.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer: Any = layer
        vars(layer)["forward"] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the layer's output on this rank."""
        raise NotImplementedError

    @property
    def usual(self) -> Callable[..., Any]:
        """The ``forward`` of the layer's class."""
        return type(self.layer).forward.__get__(self.layer)

    @property
    def note(self) -> str:
        """What else its ``repr`` says of the layer on this rank; empty for nothing."""
        return ""


def own_forward(layer: nn.Module) -> OwnForward | None:
    """Return what *layer* runs in the place of its class's ``forward``; None if it runs that."""
    forward = vars(layer).get("forward")
    return forward if isinstance(forward, OwnForward) else None


class Follower:
    """A copy of a layer of other sizes, which follows the layer's settings.

    The settings are the attributes that were equal when it was made.

    Args:
        layer: the layer that users see.
        copy: computes as the layer does.
        apart: the names of settings that the copy has for itself.
    """

    def __init__(self, layer: nn.Module, copy: nn.Module, apart: Collection[str] = ()) -> None:
        self._layer, self.copy = layer, copy
        own = {name: value for name, value in settings(copy).items() if name not in apart}
        self._names = [n for n, value in settings(layer).items() if n in own and own[n] == value]
        self._values = self._now()

    def follow(self) -> bool:
        """Give the copy the layer's settings and mode; return whether they had changed."""
        if self.copy.training != self._layer.training:
            self.copy.train(self._layer.training)
        values = self._now()
        if values == self._values:
            return False
        vars(self.copy).update(zip(self._names, values, strict=True))
        self._values = values
        return True

    def _now(self) -> list[object]:
        own = vars(self._layer)
        return [own[name] for name in self._names]


def settings(layer: nn.Module) -> dict[str, object]:
    """Return the settings of *layer* itself: its own attributes that are plain values, by name."""
    return {
        name: value
        for name, value in vars(layer).items()
        if not name.startswith("_") and name != "training" and is_plain_value(value)
    }


def is_plain_value(value: object) -> bool:
    """Return whether *value* is a number, a text or the like, or a tuple of them."""
    if isinstance(value, tuple):
        return all(map(is_plain_value, value))
    return value is None or isinstance(value, bool | int | float | complex | str)
