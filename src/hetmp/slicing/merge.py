"""``merge_model``: the unsliced module's ``state_dict``, from every rank's slices."""

from collections.abc import Iterator

from torch import Tensor

from hetmp.cluster import AgreedError
from hetmp.exchange import collect
from hetmp.slicing.model import SlicedModel
from hetmp.slicing.table import tensors_of


def merge_model(model: SlicedModel, *, root: int | None = None) -> dict[str, Tensor]:
    """Return the unsliced module's ``state_dict``: whole tensors, on the CPU.

    Collective. One tensor is in flight at a time.

    Args:
        model: a model made by ``slice_model``.
        root: the only rank that gets the tensors, the others get an empty dict; every rank
            gets them if None.

    Raises:
        HetmpError: on every rank, for a *root* that is not a rank of the model's group.
    """
    return {name: tensor for name, tensor in merged_tensors(model, root=root) if tensor is not None}


def merged_tensors(
    model: SlicedModel, *, root: int | None = None
) -> Iterator[tuple[str, Tensor | None]]:
    """Yield (name, whole tensor or None) for every entry of the ``state_dict``, one at a time.

    Collective: every rank runs through all of it. See ``merge_model``.
    """
    group = model.hetmp.group
    if root is not None and not 0 <= root < group.size:
        raise AgreedError(f"root {root} is not a rank: give one from 0 to {group.size - 1}")
    local = tensors_of(model)
    for entry in model.hetmp.table.values():
        if entry.persistent:
            yield entry.name, collect(group, local[entry.name], entry.shape, entry.state, root)
