"""Fully connected layers."""

from typing import ClassVar

from torch import Tensor, nn

from hetmp.core.partition import Layout
from hetmp.ops.call import OperatorRun
from hetmp.ops.layers.mixing import Mixing
from hetmp.ops.rule import LayerForm
from hetmp.ops.schemes import Scheme


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    return nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)


class Linear(Mixing[nn.Linear]):
    """Fully connected layers: weights are (out, in); features are the last axis."""

    layers = (nn.Linear,)
    forms: ClassVar = {
        nn.functional.linear: LayerForm(("input", "weight", "bias"), ("weight", "bias"), _linear)
    }

    def channel_axis(self, layer: nn.Linear, dims: int) -> int:
        return dims - 1

    def input_channels(self, layer: nn.Linear) -> int:
        return int(layer.in_features)

    def output_channels(self, layer: nn.Linear) -> int:
        return int(layer.out_features)

    def weight_axis(self, layer: nn.Linear, scheme: Scheme) -> int:
        return int(scheme.cuts_inputs)

    def resize(self, layer: nn.Linear, run: OperatorRun[Layout, nn.Linear], count: int) -> None:
        """Set the features of *layer* to *count*: those of its input or of its output.

        Which of the two, the scheme of the *run* says.
        """
        if run.scheme is not None and run.scheme.cuts_inputs:
            layer.in_features = count
        else:
            layer.out_features = count

    def is_plain(self, layer: nn.Linear) -> bool:
        return isinstance(layer, nn.Linear)

    def compute(self, layer: nn.Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output of *layer* for *x*, (..., features), this rank's input.

        *weight* and *bias* take the place of the layer's own; no bias if None.
        """
        return nn.functional.linear(x, weight, bias)

    def input_gradient(
        self, layer: nn.Linear, gradient: Tensor, x: Tensor, weight: Tensor
    ) -> Tensor:
        """Return the gradient of *x*, (..., features), from the *gradient* of the output.

        *layer* is this rank's; *weight* is (output features, input features).
        """
        return gradient @ weight

    def parameter_gradients(
        self, layer: nn.Linear, gradient: Tensor, x: Tensor, weight: bool, bias: bool
    ) -> dict[str, Tensor | None]:
        """Return the gradients of the *weight* and *bias* that are wanted, by name.

        *layer*, *gradient* and *x* are as in ``Mixing.parameter_gradients``.
        """
        rows = gradient.flatten(0, -2)
        return {
            "weight": rows.t() @ x.flatten(0, -2) if weight else None,
            "bias": rows.sum(0) if bias else None,
        }
