"""The rule of every family of operators: found by a layer's exact class, a function or a method."""

from typing import Any

from hetmp.core.state import L, States
from hetmp.ops.call import (
    Call,
    Flow,
    Function,
    OperatorRun,
    Ref,
    Shape,
    Value,
    filled,
    mapped,
    references,
    tensors_in,
)
from hetmp.ops.fallback import Whole
from hetmp.ops.functions.attention import Attention
from hetmp.ops.functions.axes import Axes, Expand
from hetmp.ops.functions.elementwise import Concatenation, Elementwise, Stacking
from hetmp.ops.functions.functional_conv import GivenWeight
from hetmp.ops.functions.functional_norm import BatchNormFunction
from hetmp.ops.functions.indexing import Assignment, Indexing, Narrow, Splitting, assigned
from hetmp.ops.functions.losses import CosineSimilarity, Loss
from hetmp.ops.functions.matmul import AddedProduct, Einsum, MatrixProduct
from hetmp.ops.functions.metadata import NewTensors, Questions
from hetmp.ops.functions.reduction import Along, Reduction
from hetmp.ops.functions.reshape import Repeat, RepeatInterleave, Reshape
from hetmp.ops.functions.weight_norm import WeightNorm
from hetmp.ops.generators import generator_states, generators_kept, seed_pythons
from hetmp.ops.layers.activation import AcrossAxis, AcrossChannels, Activation, Gating, PReLU
from hetmp.ops.layers.batch_norm import BareNorm, ChannelNorm
from hetmp.ops.layers.computed import COMPUTED, Computed, ComputedWeight, is_cut
from hetmp.ops.layers.convolution import Convolution
from hetmp.ops.layers.dropout import Dropout, keyed_dropouts
from hetmp.ops.layers.group_norm import GroupNorm, LayerNorm
from hetmp.ops.layers.linear import Linear
from hetmp.ops.layers.mixing import Mixing, add_bias
from hetmp.ops.layers.pooling import Pooling, Unpooling
from hetmp.ops.layers.resampling import (
    ChannelShuffle,
    Padding,
    Patches,
    PixelShuffle,
    PixelUnshuffle,
    Resampling,
)
from hetmp.ops.one_value import Statistics
from hetmp.ops.overlap import Postponed
from hetmp.ops.own_forward import OwnForward, is_plain_value, own_forward, settings
from hetmp.ops.recipe import Recipe, value_of
from hetmp.ops.registry import (
    draws,
    first_proxy,
    initial_value,
    known_layers,
    layer_form,
    may_draw,
    operator,
    register,
    rule_for,
    runs_own_code,
    shares_memory,
)
from hetmp.ops.rule import Cuts, LayerForm, Rule, cut_along, fresh_tensors
from hetmp.ops.schemes import SCHEMES, Scheme, SchemeName
from hetmp.ops.seeding import Seeds

_RULES: tuple[Rule[Any], ...] = (
    Convolution(),
    Linear(),
    ComputedWeight(),
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
    BatchNormFunction(),
    WeightNorm(),
)

for _rule in _RULES:
    register(_rule, replace=True)

LAYERS = tuple(kind for kind in known_layers() if not issubclass(kind, Computed))
"""Other people's layer classes that hetmp has rules for; ``known_layers`` has every one."""

__all__ = [
    "COMPUTED",
    "LAYERS",
    "SCHEMES",
    "Call",
    "Computed",
    "Cuts",
    "Flow",
    "Function",
    "L",
    "LayerForm",
    "Mixing",
    "OperatorRun",
    "OwnForward",
    "Postponed",
    "Recipe",
    "Ref",
    "Rule",
    "Scheme",
    "SchemeName",
    "Seeds",
    "Shape",
    "States",
    "Statistics",
    "Value",
    "Whole",
    "add_bias",
    "assigned",
    "cut_along",
    "draws",
    "filled",
    "first_proxy",
    "fresh_tensors",
    "generator_states",
    "generators_kept",
    "initial_value",
    "is_cut",
    "is_plain_value",
    "keyed_dropouts",
    "known_layers",
    "layer_form",
    "mapped",
    "may_draw",
    "operator",
    "own_forward",
    "references",
    "register",
    "rule_for",
    "runs_own_code",
    "seed_pythons",
    "settings",
    "shares_memory",
    "tensors_in",
    "value_of",
]
