"""Scaled dot-product attention: heads keep apart."""

from collections.abc import Hashable

from torch import Tensor
from torch.nn import functional as F

from hetmp.cluster import Group
from hetmp.core.state import L, Sliced, States
from hetmp.ops.call import Call, Flow, Function, OperatorRun
from hetmp.ops.labelled import Labelled, from_right, tensor_names
from hetmp.ops.rule import Rule


class Attention(Rule):
    """Queries (..., i, k), keys (..., j, k) and values (..., j, v) give (..., i, v).

    Heads, queries and the width of the values may be cut. Scores need the whole width of queries
    and keys, their softmax every key.
    """

    functions = (F.scaled_dot_product_attention,)
    random = ("scaled_dot_product_attention",)

    def unfit(self, call: Call) -> str | None:
        return "it draws random numbers" if call.argument(4, "dropout_p", 0.0) != 0 else None

    def flow(self, call: Call, states: States[L]) -> Flow[L] | None:
        operands = [call.argument(i, name) for i, name in enumerate(("query", "key", "value"))]
        mask = call.argument(3, "attn_mask")
        names = tensor_names(call, *operands, *([] if mask is None else [mask]))
        if names is None or call.kwargs.get("enable_gqa", False):
            return None
        labels = [
            _labels(call.values[name].dims, axes)
            for name, axes in zip(names, ("ik", "jk", "jv", "ij"), strict=False)
        ]
        result = _labels(call.result.dims, "iv")
        if call.argument(5, "is_causal", False) is not False:
            # A rank with some of the queries would start its causal mask at its first query.
            result[-2] = "all queries"
        return Labelled(list(zip(names, labels, strict=True)), result).flow(call, states)

    def function(self, run: OperatorRun, group: Group) -> Function:
        compute, target = super().function(run, group), run.target
        of_nothing: Function = _of_nothing
        if not isinstance(target, Sliced):
            return compute
        layout = target.layout

        def attend(*args: object, **kwargs: object) -> object:
            # How many images there are is known only now.
            mine = compute if layout.counts[group.rank] else of_nothing
            return mine(*args, **kwargs)

        return attend


def _of_nothing(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *_: object,
    **__: object,
) -> Tensor:
    """Compute attention without elements: torch's own would leave the mask without a gradient."""
    scores = query @ key.transpose(-2, -1)
    if attn_mask is not None and attn_mask.is_floating_point():
        scores = scores + attn_mask
    return scores.softmax(-1) @ value


def _labels(dims: int, last: str) -> list[Hashable]:
    """Return labels for *dims* axes; a mask, which is broadcast, may have fewer than two."""
    return [*from_right(dims - 2), *last][-dims:]
