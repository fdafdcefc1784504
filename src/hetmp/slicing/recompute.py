"""What makes the second run of a recomputed segment the same as the first.

Running statistics are those from before the first run, and what the second changes is dropped.
Parameters, buffers and modes must be those of the first run: else it is refused.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hetmp.cluster import AgreedError
from hetmp.exchange import alias, save_token
from hetmp.ops import tensors_in
from hetmp.slicing.hooks import shown


class LayersBefore:
    """A segment's layers as they are before it runs.

    Args:
        layer: names the segment for the user.
        layers: what it calls, by the name of the step.
    """

    def __init__(self, layer: str, layers: Mapping[str, nn.Module]) -> None:
        self._layer, self._layers = layer, layers
        self._modes = self._modes_now()
        self._fixed: list[tuple[Tensor, int]] = [
            (p, p._version) for x in layers.values() for p in x.parameters()
        ]
        self._buffers = {
            step: {name: (b, b._version, b.clone()) for name, b in x.named_buffers()}
            for step, x in layers.items()
        }

    def ran(self) -> None:
        """Note that the segment has run once: forget copies of what it did not change."""
        changed = {}
        for step, buffers in self._buffers.items():
            same = [(b, version) for b, version, _ in buffers.values() if b._version == version]
            self._fixed += same
            if len(same) < len(buffers):
                changed[step] = buffers
        self._buffers = changed

    @contextmanager
    def restored(self) -> Iterator[dict[str, dict[str, Tensor]]]:
        """Let the layers run again inside, without hooks that see whole values: those have seen.

        Yields, by step, the buffers of layers that change theirs, as they were before.

        Raises:
            AgreedError: parameters, other buffers or modes are no longer those of the first run.
        """
        if self._modes != self._modes_now() or any(p._version != v for p, v in self._fixed):
            raise AgreedError(
                f"the layer {self._layer!r} or one behind it has other parameters, buffers or "
                "another mode than in the forward pass, and the backward pass would compute it "
                "again with these (backward 'recompute' in the plan): call backward() before "
                "anything is changed, or keep the layer"
            )
        with ExitStack() as stack:
            for layer in self._layers.values():
                stack.enter_context(shown(layer, local=True))
            yield {
                step: {name: value.clone() for name, (_, _, value) in buffers.items()}
                for step, buffers in self._buffers.items()
            }

    def _modes_now(self) -> list[bool]:
        return [part.training for layer in self._layers.values() for part in layer.modules()]


def closed(results: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the results of a segment, behind a node that asks for a saved tensor on every rank.

    A rank without channels may have saved nothing else, and all of them must compute the segment
    again, with its exchanges, at the same point of the backward pass: where its results' gradients
    have come.
    """
    differentiable = {id(x): x for x in tensors_in(results) if x.requires_grad}
    if not differentiable:
        return results
    behind = dict(zip(differentiable, _Close.apply(*differentiable.values()), strict=True))
    return tuple(_replaced(result, behind) for result in results)


def _replaced(value: Any, behind: Mapping[int, Tensor]) -> Any:
    """Return *value* with tensors replaced by those of *behind*, by their ``id``."""
    if isinstance(value, tuple | list):
        items = [_replaced(item, behind) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return behind.get(id(value), value)


class _Close(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *results: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        save_token(ctx, results[0])
        return tuple(alias(result) for result in results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        return gradients
