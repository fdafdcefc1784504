"""Subclasses of known layers: those that compute as their base does are taken for it."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrize import is_parametrized

from hetmp.ops import known_layers

_USERS_CLASS = "_users_class"

_HARMLESS = {"__init__", "__repr__", "extra_repr", "reset_parameters"}
"""Attributes a subclass may override and still be treated as its base."""

_TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
"""Attributes that a layer reads when it runs, which a subclass may make a property."""


def as_bases(skeleton: nn.Module) -> None:
    """Replace each layer whose class computes exactly as its base by an object of that base.

    Such as a convolution whose class only has another ``__init__``.
    """
    for layer in skeleton.modules():
        base = base_of(type(layer))
        if base is not None and base is not type(layer):
            vars(layer)[_USERS_CLASS] = type(layer)
            layer.__class__ = base


def as_users_class(layer: nn.Module) -> None:
    """Make *layer*, a copy of one that was taken for its base, an object of its own class again."""
    layer.__class__ = vars(layer).pop(_USERS_CLASS, type(layer))


def base_of(kind: type) -> type[nn.Module] | None:
    """Return the known layer that *kind* is, or computes exactly as; None if there is none."""
    known = known_layers()
    base = next((each for each in kind.__mro__ if each in known), None)
    return base if base is not None and (base is kind or _computes_like(kind, base)) else None


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
