"""The rule of every family of operators: found by a layer's exact class, a function or a method."""

from collections.abc import Callable
from typing import Any

from torch import nn

from hetmp.ops.activation import AcrossAxis, AcrossChannels, Activation, PReLU
from hetmp.ops.axes import Axes, Expand
from hetmp.ops.call import (
    SCHEMES,
    Call,
    Flow,
    Ref,
    Run,
    Scheme,
    Shape,
    Value,
    filled,
    mapped,
    references,
)
from hetmp.ops.convolution import Convolution
from hetmp.ops.dropout import Dropout, KeyedDropout
from hetmp.ops.joins import Concatenation, Elementwise, Stacking
from hetmp.ops.linear import Linear
from hetmp.ops.mixing import Mixing, add_bias
from hetmp.ops.normalization import ChannelNorm
from hetmp.ops.normalization_across import GroupNorm, LayerNorm
from hetmp.ops.pieces import Indexing, Narrow, Splitting
from hetmp.ops.pooling import Pooling
from hetmp.ops.postponed import Postponed
from hetmp.ops.questions import Questions
from hetmp.ops.reduction import Reduction
from hetmp.ops.resampling import ChannelShuffle, Padding, PixelShuffle, PixelUnshuffle, Resampling
from hetmp.ops.reshape import Reshape
from hetmp.ops.rule import Cuts, Rule, fresh_tensors
from hetmp.ops.whole import Whole, draws, seeded

_RULES: tuple[Rule, ...] = (
    Convolution(),
    Linear(),
    ChannelNorm(),
    GroupNorm(),
    LayerNorm(),
    Pooling(),
    Resampling(),
    Padding(),
    PixelShuffle(),
    PixelUnshuffle(),
    ChannelShuffle(),
    Activation(),
    PReLU(),
    AcrossAxis(),
    AcrossChannels(),
    Dropout(),
    Elementwise(),
    Concatenation(),
    Stacking(),
    Reshape(),
    Axes(),
    Expand(),
    Questions(),
    Indexing(),
    Narrow(),
    Splitting(),
    Reduction(),
)

_LAYERS: dict[type[nn.Module], Rule] = {layer: rule for rule in _RULES for layer in rule.layers}
_FUNCTIONS: dict[Any, Rule] = {function: rule for rule in _RULES for function in rule.functions}
_METHODS: dict[str, Rule] = {method: rule for rule in _RULES for method in rule.methods}

LAYERS = tuple(_LAYERS)
"""Every layer class that has a rule."""


def rule_for(target: nn.Module | Callable[..., Any] | str) -> Rule | None:
    """The rule that speaks for a layer's exact class, a function or a method's name, or None.

    A subclass of a layer may do anything.
    """
    if isinstance(target, nn.Module):
        return _LAYERS.get(type(target))
    return _METHODS.get(target) if isinstance(target, str) else _FUNCTIONS.get(target)


__all__ = [
    "LAYERS",
    "SCHEMES",
    "Call",
    "Cuts",
    "Flow",
    "KeyedDropout",
    "Mixing",
    "Postponed",
    "Ref",
    "Rule",
    "Run",
    "Scheme",
    "Shape",
    "Value",
    "Whole",
    "add_bias",
    "draws",
    "filled",
    "fresh_tensors",
    "mapped",
    "references",
    "rule_for",
    "seeded",
]
