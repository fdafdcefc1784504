"""Subclasses of known layers: those that compute as their base does are taken for it."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrize import is_parametrized

from hetmp.ops import known_layers

_HARMLESS = {"__init__", "__repr__", "extra_repr", "reset_parameters"}
"""What a subclass may have of its own of what its base has."""

_TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
"""What a layer finds on itself when it runs: a property may stand in for it."""


def as_bases(skeleton: nn.Module) -> None:
    """Make every layer whose class adds nothing to how its base computes an object of that base.

    Such as a convolution whose class only has another ``__init__``.
    """
    known = known_layers()
    for layer in skeleton.modules():
        base = next((kind for kind in type(layer).__mro__ if kind in known), None)
        if base is not None and base is not type(layer) and _computes_like(type(layer), base):
            layer.__class__ = base


def is_unfolded(layer: nn.Module) -> bool:
    """Whether to look into an object of a subclass of a known layer, which does more than its base.

    What it calls may have rules: functions on its own weight, pooling, activations. Not where it
    changes statistics or draws random numbers, nor where its tensors are computed.
    """
    bases = [kind for kind in type(layer).__mro__ if kind in known_layers()]
    return (
        bases[0].__module__.startswith("torch.")
        and not isinstance(layer, _NormBase | _DropoutNd)
        and not is_parametrized(layer)
    )


def _computes_like(kind: type, base: type) -> bool:
    used = (set(dir(base)) | _TENSORS | {"__call__"}) - _HARMLESS
    added = kind.__mro__[: kind.__mro__.index(base)]
    own = {name for one in added for name in vars(one)} - set(vars(_Empty))
    return not own & used


class _Empty(nn.Module):
    """What Python itself gives every class."""

    annotated: int
