"""Access to the runtime of the model that an optimizer is given."""

from torch import nn

from hetmp.core.errors import HetmpError
from hetmp.slicing import SlicedModel
from hetmp.slicing.runtime import Runtime


def runtime_of(model: nn.Module, who: str) -> Runtime:
    """Return the runtime of a sliced *model*: its group and its table.

    Args:
        who: what needs it, for the message.

    Raises:
        HetmpError: a model that ``slice_model`` did not make.
    """
    if not isinstance(model, SlicedModel):
        raise HetmpError(
            f"{who} takes a model made by hetmp.slice_model, got {type(model).__name__}: slice "
            "it first, or use torch's own on an unsliced module"
        )
    return model.hetmp
