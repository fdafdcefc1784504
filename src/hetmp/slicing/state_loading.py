"""A state_dict for a sliced model: of this slicing's own slices, or whole, from anywhere."""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from hetmp.core.errors import HetmpError
from hetmp.core.state import FULL
from hetmp.core.state_names import held_state, unwrapped_names
from hetmp.exchange import share_of
from hetmp.slicing.table import Table


def fitting_state(state: Any, names: Collection[str]) -> Any:
    """Return a state_dict under the model's own *names*, with what torch keeps beside it.

    It may lie in a dict under a usual name, and its names may have the prefix of a wrapper.
    """
    if not isinstance(state, Mapping):
        return state  # torch says what is wrong with it
    inner = state if any(name in names for name in state) else held_state(state)
    taken, bare = unwrapped_names([name for name in inner if isinstance(name, str)], names)
    if inner is state and not taken:
        return state
    fitting = OrderedDict((bare.get(name, name), value) for name, value in inner.items())
    # By a layer's path: which version of torch's class wrote its entries.
    versions = getattr(inner, "_metadata", {})
    paths = {name.rpartition(".")[0]: own.rpartition(".")[0] for name, own in bare.items()}
    fitting._metadata = {  # type: ignore[attr-defined]
        own: versions[path] for path, own in paths.items() if path in versions
    }
    return fitting


def cut_whole(
    state: dict[str, Any],
    prefix: str,
    table: Table,
    local: Mapping[str, Tensor],
    rank: int,
    *,
    assign: bool,
) -> list[str]:
    """Replace whole tensors by this rank's shares, where *state* is of the whole model.

    It is, unless each tensor of it that is cut has the shape of this rank's slice.

    Args:
        state: changed in place; under *prefix* it has the names of *table*.
        prefix: of the names.
        table: of the model.
        local: this rank's tensors, by name.
        rank: this rank.
        assign: whether the values become the model's own, so that none may keep a whole tensor.

    Returns:
        A line, in torch's words, for each tensor whose shape is neither. In *state* it is
        replaced by the model's own, so that nothing is said of it a second time.

    Raises:
        HetmpError: *assign* would part tensors that are one.
    """
    present = {
        name: value
        for name, entry in table.items()
        if entry.persistent and isinstance(value := state.get(f"{prefix}{name}"), Tensor)
    }
    if assign:
        _check_ties(present, table)
    cut = {name: value for name, value in present.items() if table[name].state != FULL}
    if all(value.shape == local[name].shape for name, value in cut.items()):
        return []
    wrong = []
    for name, value in cut.items():
        entry = table[name]
        if value.shape == entry.shape:
            share = share_of(value.detach(), entry.state, rank)
            state[f"{prefix}{name}"] = share.clone() if assign else share
            continue
        wrong.append(
            f"size mismatch for {prefix}{name}: copying a param with shape {value.shape} from "
            f"checkpoint, the shape in current model is {entry.shape}, of which this rank holds "
            f"{local[name].shape}."
        )
        state[f"{prefix}{name}"] = local[name].detach()
    return wrong


def _check_ties(present: Collection[str], table: Table) -> None:
    """Refuse to assign values one by one to what is one tensor under several names."""
    for name, entry in table.items():
        if entry.alias_of is not None and (name in present or entry.alias_of in present):
            raise HetmpError(
                f"assign=True would make two tensors of {entry.alias_of!r} and {name!r}, which "
                "are one in the model: leave assign out, and the values are copied"
            )
