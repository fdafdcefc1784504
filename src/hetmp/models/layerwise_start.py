"""Initial values made layer by layer, for networks too large for any one rank."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hetmp.core.errors import HetmpError
from hetmp.models.network import he_start


def layer_by_layer(module: nn.Module) -> Callable[[str, torch.Size, torch.Generator], Tensor]:
    """Return the *init* of ``slice_model`` for *module*, which is on the meta device.

    One layer at a time is made real: convolutions get He's start, every other layer its own
    (``reset_parameters``). The values depend on the generator that ``slice_model`` gives, so on
    torch's seed on rank 0 and the parameter's name, and on nothing else. They are not those that
    the network has when it is built whole: there one stream of random numbers runs through it.

    Raises, when it is called:
        HetmpError: a parameter whose layer has no start of its own.
    """

    def init(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Start the parameter *name* of *shape*, as its layer does, from *generator* alone."""
        path, _, own = name.rpartition(".")
        layer = module.get_submodule(path)
        restart = getattr(type(layer), "reset_parameters", None)
        if restart is None:
            raise HetmpError(
                f"{name} belongs to a {type(layer).__name__}, which has no reset_parameters to "
                "start it: add one, or build the network whole, without layerwise"
            )
        real = copy.copy(layer)
        real._parameters = {
            key: None if value is None else nn.Parameter(torch.empty_like(value, device="cpu"))
            for key, value in layer._parameters.items()
        }
        real._buffers = {
            key: None if value is None else torch.empty_like(value, device="cpu")
            for key, value in layer._buffers.items()
        }
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(generator.initial_seed())
            if isinstance(real, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                he_start(real)
            else:
                restart(real)
        return getattr(real, own).detach()

    return init
