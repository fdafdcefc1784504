"""The rule of every family of operators: found by a layer's exact class, a function or a method."""

from hetmp.ops.activation import AcrossAxis, AcrossChannels, Activation, PReLU
from hetmp.ops.along import Along
from hetmp.ops.assignment import Assignment, assigned
from hetmp.ops.attention import Attention
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
from hetmp.ops.comparisons import CosineSimilarity, Loss
from hetmp.ops.convolution import Convolution
from hetmp.ops.dropout import Dropout, KeyedDropout
from hetmp.ops.gating import Gating
from hetmp.ops.given_weights import GivenWeight
from hetmp.ops.joins import Concatenation, Elementwise, Stacking
from hetmp.ops.linear import Linear
from hetmp.ops.mixing import Mixing, add_bias
from hetmp.ops.normalization import BareNorm, ChannelNorm
from hetmp.ops.normalization_across import GroupNorm, LayerNorm
from hetmp.ops.patches import Patches
from hetmp.ops.pieces import Indexing, Narrow, Splitting
from hetmp.ops.pooling import Pooling, Unpooling
from hetmp.ops.postponed import Postponed
from hetmp.ops.products import AddedProduct, Einsum, MatrixProduct
from hetmp.ops.questions import NewTensors, Questions
from hetmp.ops.reduction import Reduction
from hetmp.ops.registry import first_proxy, known_layers, operator, register, rule_for
from hetmp.ops.repeats import Repeat, RepeatInterleave
from hetmp.ops.resampling import ChannelShuffle, Padding, PixelShuffle, PixelUnshuffle, Resampling
from hetmp.ops.reshape import Reshape
from hetmp.ops.rule import Cuts, Rule, States, cut_along, fresh_tensors
from hetmp.ops.whole import Whole, draws, seeded

_RULES: tuple[Rule, ...] = (
    Convolution(),
    Linear(),
    ChannelNorm(),
    BareNorm(),
    GroupNorm(),
    LayerNorm(),
    Pooling(),
    Unpooling(),
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
    Assignment(),
    GivenWeight(),
    MatrixProduct(),
    AddedProduct(),
    Einsum(),
    Attention(),
    Along(),
    Repeat(),
    RepeatInterleave(),
    Patches(),
    Loss(),
    CosineSimilarity(),
    Gating(),
    NewTensors(),
)

for _rule in _RULES:
    register(_rule, replace=True)

LAYERS = known_layers()
"""The layer classes that hetmp itself has rules for: ``known_layers`` has the user's, too."""

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
    "States",
    "Value",
    "Whole",
    "add_bias",
    "assigned",
    "cut_along",
    "draws",
    "filled",
    "first_proxy",
    "fresh_tensors",
    "known_layers",
    "mapped",
    "operator",
    "references",
    "register",
    "rule_for",
    "seeded",
]
