"""Two activations compared: losses inside a model, and similarity."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.loss import _Loss

from hetmp.cluster import Group
from hetmp.core.partition import Layout
from hetmp.core.state import PARTIAL, L, Sliced, States
from hetmp.ops.call import Call, Flow, Function, OperatorRun
from hetmp.ops.labelled import Labelled, from_right, tensor_names
from hetmp.ops.own_forward import Follower, OwnForward
from hetmp.ops.rule import Rule


class Loss(Rule[_Loss]):
    """Elementwise losses; a sum or a mean over all elements is a summand on each rank."""

    layers = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
    functions = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
    several = True

    def flow(self, call: Call[_Loss], states: States[L]) -> Flow[L] | None:
        names = tensor_names(call, call.argument(0, "input"), call.argument(1, "target"))
        other = (call.kwargs.get(name) for name in ("size_average", "reduce", "weight"))
        plain = len(call.args) <= 2 and all(setting is None for setting in other)
        if names is None or not plain or set(names) != set(states):
            return None
        labels = [from_right(call.values[name].dims) for name in names]
        every = max(labels, key=len)
        none = _reduction(call) == "none"
        operands = list(zip(names, labels, strict=True))
        return Labelled(operands, every if none else [], () if none else every).flow(call, states)

    def local(
        self, run: OperatorRun[Layout, _Loss], group: Group, device: torch.device
    ) -> nn.Module:
        """Return a layer for this rank's part of a mean; of any other loss, a copy of the layer.

        *run*, *group* and *device* are as in ``Rule.local``.
        """
        layout, local = _meant(run), copy.deepcopy(run.whole_layer)
        if layout is not None:
            _LossPart(local, layout, group.rank)
        return local

    def function(self, run: OperatorRun[Layout, _Loss], group: Group) -> Function:
        layout = _meant(run)
        if layout is None:
            return super().function(run, group)

        def mean(*args: object, **kwargs: object) -> object:
            part = layout.counts[group.rank] / layout.total
            if part == 0:  # the mean of no elements is not a number; their sum has its shape
                kwargs = {**kwargs, "reduction": "sum"}
            return run.call.invoke(args, kwargs) * (part or 1)

        return mean


class _LossPart(OwnForward):
    """This rank's part of a mean."""

    def __init__(self, layer: _Loss, layout: Layout, rank: int) -> None:
        mean, total = copy.deepcopy(layer), copy.deepcopy(layer)
        total.reduction = "sum"  # see above
        super().__init__(layer)
        self._mean, self._sum = Follower(layer, mean), Follower(layer, total, apart=("reduction",))
        self._layout, self._rank = layout, rank

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Return the summand of a loss."""
        part = self._layout.counts[self._rank] / self._layout.total
        mine = self._mean if part else self._sum
        mine.follow()
        loss: Tensor = mine.copy(*args, **kwargs)
        return loss * (part or 1)


def _reduction(call: Call[_Loss]) -> str:
    if call.layer is not None:
        return call.layer.reduction
    return str(call.kwargs.get("reduction", "mean"))


def _meant(run: OperatorRun[Layout, _Loss]) -> Layout | None:
    """Return how the elements of a mean lie over the ranks; None if it is no mean of a part."""
    if run.target != PARTIAL or _reduction(run.call) != "mean":
        return None
    return next(want.layout for want in run.flow.wants.values() if isinstance(want, Sliced))


class CosineSimilarity(Rule):
    """Cosine similarity over an axis that is not cut; the other axes are independent."""

    layers = (nn.CosineSimilarity,)
    functions = (F.cosine_similarity, torch.cosine_similarity)
    several = True

    def flow(self, call: Call, states: States[L]) -> Flow[L] | None:
        names = tensor_names(call, call.argument(0, "x1"), call.argument(1, "x2"))
        dim = call.setting(2, "dim", 1)
        if names is None or not isinstance(dim, int):
            return None
        labels = [from_right(call.values[name].dims) for name in names]
        every = max(labels, key=len)
        result = [label for label in every if label != every[dim]]
        return Labelled(list(zip(names, labels, strict=True)), result).flow(call, states)
