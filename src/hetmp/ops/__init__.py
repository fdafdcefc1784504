"""The rule of every family of operators, found by a layer's exact class."""

from torch import nn

from hetmp.ops.activation import AcrossChannels, Elementwise, PReLU
from hetmp.ops.convolution import Convolution
from hetmp.ops.dropout import Dropout, KeyedDropout
from hetmp.ops.linear import Linear
from hetmp.ops.mixing import add_bias
from hetmp.ops.normalization import BatchNorm
from hetmp.ops.pooling import Pooling
from hetmp.ops.reshape import Flatten
from hetmp.ops.rule import SCHEMES, Cuts, Rule, Scheme, Shape, fresh_tensors

_RULES: dict[type[nn.Module], Rule] = {
    layer: rule
    for rule in (
        Convolution(),
        Linear(),
        BatchNorm(),
        Pooling(),
        Elementwise(),
        PReLU(),
        AcrossChannels(),
        Dropout(),
        Flatten(),
    )
    for layer in rule.layers
}

LAYERS = tuple(_RULES)
"""Every layer class that has a rule."""


def rule_for(layer: nn.Module) -> Rule | None:
    """The rule that speaks for *layer*'s exact class, or None. A subclass may do anything."""
    return _RULES.get(type(layer))


__all__ = [
    "LAYERS",
    "SCHEMES",
    "Cuts",
    "KeyedDropout",
    "Rule",
    "Scheme",
    "Shape",
    "add_bias",
    "fresh_tensors",
    "rule_for",
]
