"""Operations without a rule: every rank computes them whole, from full operands."""

import copy
from typing import ClassVar

import torch
from torch import nn

from hetmp.cluster import Group
from hetmp.core.state import L, States
from hetmp.ops.call import Call, Function, OperatorRun
from hetmp.ops.rule import Rule


class Whole(Rule):
    """An operation that every rank computes whole, with all its parameters.

    Its random numbers must be the same on all ranks: see ``Seeds``.
    """

    # Running statistics, whatever normalization layer keeps them.
    initial_buffers: ClassVar = {
        "running_mean": 0.0,
        "running_var": 1.0,
        "num_batches_tracked": 0.0,
    }
    # Of operations without a rule.
    views = ("diagonal", "moveaxis", "positive", "ravel", "select")
    random = (
        *("rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm"),
        *("bernoulli", "normal", "multinomial", "poisson", "binomial"),
        *("rrelu", "rrelu_", "gumbel_softmax"),
        *("bernoulli_", "uniform_", "normal_", "random_", "exponential_"),
        *("cauchy_", "geometric_", "log_normal_"),
        *("alpha_dropout", "feature_alpha_dropout", "feature_dropout", "native_dropout"),
        *("dropout_", "alpha_dropout_", "feature_alpha_dropout_", "feature_dropout_"),
        *("fractional_max_pool2d", "fractional_max_pool2d_with_indices"),
        *("fractional_max_pool3d", "fractional_max_pool3d_with_indices"),
        *("multi_head_attention_forward", "rnn_relu", "rnn_tanh", "lstm", "gru"),
        *("svd_lowrank", "pca_lowrank"),
    )

    def flow(self, call: Call, states: States[L]) -> None:
        return None

    def tensors(self, layer: nn.Module) -> tuple[str, ...]:
        named = (*layer.named_parameters(remove_duplicate=False), *layer.named_buffers())
        return tuple(name for name, _ in named)

    def local(self, run: OperatorRun, group: Group, device: torch.device) -> nn.Module:
        """Return a copy of the layer with all its tensors, uninitialised, on *device*.

        *run* and *group* are as in ``Rule.local``; every rank gets the same.
        """
        layer = run.whole_layer
        memo: dict[int, object] = {}
        for parameter in layer.parameters():
            fresh = torch.empty_like(parameter, device=device)
            memo[id(parameter)] = nn.Parameter(fresh, requires_grad=parameter.requires_grad)
        for buffer in layer.buffers():
            memo[id(buffer)] = torch.empty_like(buffer, device=device)
        return copy.deepcopy(layer, memo)

    def function(self, run: OperatorRun, group: Group) -> Function:
        return lambda *args, **kwargs: run.call.invoke(args, kwargs)
