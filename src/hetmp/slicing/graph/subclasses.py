"""Subclasses of known layers: those that compute as their base does are taken for it."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrize import is_parametrized

from hetmp.ops import known_layers

_HARMLESS = {"__init__", "__repr__", "extra_repr", "reset_parameters"}
"""Attributes a subclass may override and still be treated as its base."""

_TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
"""Attributes that a layer reads when it runs, which a subclass may make a property."""


def as_bases(skeleton: nn.Module) -> None:
    """Replace each layer whose class computes exactly as its base by an object of that base.

    Such as a convolution whose class only has another ``__init__``.
    """
    known = known_layers()
    for layer in skeleton.modules():
        base = next((kind for kind in type(layer).__mro__ if kind in known), None)
        if base is not None and base is not type(layer) and _computes_like(type(layer), base):
            layer.__class__ = base


def is_unfolded(layer: nn.Module) -> bool:
    """Return whether to trace into an object of a subclass of a known layer that does more.

    The operations it calls may have rules: functions on its own weight, pooling, activations.
    False where it changes statistics or draws random numbers, or where its tensors are computed.
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
    own = {name for cls in added for name in vars(cls)} - set(vars(_Empty))
    return not own & used


class _Empty(nn.Module):
    """An empty class: the attributes that Python gives every class."""

    annotated: int
