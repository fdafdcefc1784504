"""One architecture that others wrote: how it is built, and what it is given."""

import importlib
import importlib.metadata
import importlib.util
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Shapes = tuple[tuple[int, ...], ...]

RGB: Shapes = ((3, 3, 64, 64),)
GRAY: Shapes = ((2, 1, 64, 64),)
CUBE: Shapes = ((2, 1, 32, 32, 32),)
SMALL_CUBE: Shapes = ((2, 1, 16, 16, 16),)


@dataclass(frozen=True)
class Architecture:
    """One model, with random weights. Nothing is downloaded.

    Attributes:
        name: as its package calls it, with what is not its default.
        package: the module that is imported for it.
        make: builds it, given that module.
        shapes: of its inputs, batch first: at least two images, and small ones.
        names: of its inputs, where they are given by name.
        keywords: further arguments of a call, which are no tensors.
        small: whether it is among those that the tests train.
    """

    name: str
    package: str
    make: Callable[[Any], nn.Module]
    shapes: Shapes
    names: tuple[str, ...] = ()
    keywords: Mapping[str, Any] | None = None
    small: bool = False

    @property
    def distribution(self) -> str:
        """What pip calls the package."""
        return self.package.split(".")[0].replace("_", "-")

    @property
    def available(self) -> bool:
        """Whether its package is installed."""
        return importlib.util.find_spec(self.package.split(".")[0]) is not None

    def build(self) -> nn.Module:
        """The model in training mode, seeded, without a word from its package."""
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            try:
                return settled(self.make(importlib.import_module(self.package)).train())
            finally:
                logging.disable(logging.NOTSET)

    def arguments(self, dtype: torch.dtype, seed: int = 0) -> Any:
        """What a call is given: images of random numbers, a tuple or by name."""
        drawn = torch.Generator().manual_seed(seed)
        images = [torch.rand(shape, generator=drawn, dtype=dtype) for shape in self.shapes]
        if self.names:
            return {**dict(zip(self.names, images, strict=True)), **(self.keywords or {})}
        return tuple(images)


def settled(module: nn.Module) -> nn.Module:
    """*module* without dropout and without paths that are left out at random.

    Sliced dropout draws other masks than torch's, by design, so the two could not be compared.
    torch's layers and torchvision's have ``p``, others one of the other names.
    """
    for layer in module.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd) or _leaves_out(layer):
            layer.p = 0.0
        for name in ("drop_prob", "drop_connect_rate", "_drop_connect_rate"):
            if hasattr(layer, name):
                setattr(layer, name, 0.0)
    return module


def _leaves_out(layer: nn.Module) -> bool:
    return type(layer).__name__ == "StochasticDepth"


def tensors(given: Any) -> list[Tensor]:
    """All tensors in what a model gives."""
    if isinstance(given, Tensor):
        return [given]
    if isinstance(given, Mapping):
        return [tensor for item in given.values() for tensor in tensors(item)]
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [tensor for item in given for tensor in tensors(item)]
    return []


def called(name: str, *args: Any, **kwargs: Any) -> Callable[[Any], nn.Module]:
    """Builds a model by calling what the package has under *name*."""
    return lambda package: getattr(package, name)(*args, **kwargs)
