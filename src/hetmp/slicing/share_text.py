"""What a layer's ``repr`` says of this rank's share of it."""

from torch import nn

from hetmp.core.batch_layout import BatchLayout
from hetmp.core.partition import Layout
from hetmp.core.state import Sliced, batch_of
from hetmp.ops import OperatorRun, own_forward

_KINDS = {"filters": "filters", "inputs": "input channels"}
"""What a scheme cuts."""

_MOST_RUNS = 3
"""Shares of more runs of channels are told by their number."""


class ShareRepr:
    """The ``extra_repr`` of a layer, with this rank's share of it at the end."""

    def __init__(self, layer: nn.Module, share: str) -> None:
        self._layer, self._share = layer, share

    def __call__(self) -> str:
        """Return the layer's settings and the share."""
        usual = type(self._layer).extra_repr(self._layer)
        return ", ".join(filter(None, (usual, self._share)))


def describe_share(layer: nn.Module, run: OperatorRun[Layout], rank: int) -> None:
    """Let the ``repr`` of *layer*, this rank's part of the one in *run*, say what it has of it."""
    own, share = own_forward(layer), run.source if run.scheme is None else run.scheme.share(run)
    notes = [own.note] if own is not None and own.note else []
    images = batch_of(share)
    if images is not None:
        notes = [batch_text(images, rank), *notes]
    elif isinstance(share, Sliced):
        kind = _KINDS[run.scheme.name] if run.scheme is not None else "channels"
        notes = [share_text(share.layout, rank, kind), *notes]
    if notes:
        vars(layer)["extra_repr"] = ShareRepr(layer, ", ".join(notes))


def batch_text(layout: BatchLayout, rank: int) -> str:
    """Return which part of every batch a rank has: ``3/4 of the images``."""
    return f"{layout.weights[rank] / sum(layout.weights)} of the images"


def share_text(layout: Layout, rank: int, kind: str) -> str:
    """Return which of a layout's channels, called *kind*, a rank has: ``filters 0-41 of 60``."""
    count, runs = layout.counts[rank], [s for s in layout.slices(rank) if s.start < s.stop]
    if not count:
        return f"none of {layout.total} {kind}"
    if len(runs) > _MOST_RUNS:
        return f"{count} of {layout.total} {kind}"
    named = " and ".join(
        f"{run.start}-{run.stop - 1}" if run.stop > run.start + 1 else f"{run.start}"
        for run in runs
    )
    return f"{kind} {named} of {layout.total}"
