"""Train convolutional networks across devices of unequal speed, in uneven slices of channels.

import hetmp
model = hetmp.slice_model(module, weights, comm)
...                                  # your own loop: model(x), loss.backward(), step()
state = hetmp.merge_model(model)     # the unsliced module's state_dict
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hetmp.channel_groups import plan_from_weights
    from hetmp.checkpoint import load, save
    from hetmp.comm import Group
    from hetmp.errors import HetmpError
    from hetmp.exchange import Exchange
    from hetmp.graph import leaf, read_graph
    from hetmp.ops import operator, register
    from hetmp.optim import clip_grad_norm_
    from hetmp.partition import Layout, Partition, apportion
    from hetmp.plan import Plan
    from hetmp.slicing import SlicedModel, Tuning, merge_model, slice_model

_HOMES = {
    "Exchange": "exchange",
    "Group": "comm",
    "HetmpError": "errors",
    "Layout": "partition",
    "Partition": "partition",
    "Plan": "plan",
    "SlicedModel": "slicing",
    "Tuning": "slicing",
    "apportion": "partition",
    "clip_grad_norm_": "optim",
    "leaf": "graph",
    "load": "checkpoint",
    "merge_model": "slicing",
    "operator": "ops",
    "plan_from_weights": "channel_groups",
    "read_graph": "graph",
    "register": "ops",
    "save": "checkpoint",
    "slice_model": "slicing",
}

__all__ = [
    "Exchange",
    "Group",
    "HetmpError",
    "Layout",
    "Partition",
    "Plan",
    "SlicedModel",
    "Tuning",
    "__version__",
    "apportion",
    "clip_grad_norm_",
    "leaf",
    "load",
    "merge_model",
    "operator",
    "plan_from_weights",
    "read_graph",
    "register",
    "save",
    "slice_model",
]


def __dir__() -> list[str]:
    """List the public names: what an editor or a notebook completes before anything is imported."""
    return __all__


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds, so it waits until something needs it.
    if name == "slice_model":
        import_module("hetmp.optim")  # it watches for optimizers that are wrong on slices
    if name in _HOMES:
        return getattr(import_module(f"hetmp.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'hetmp' has no attribute {name!r}")
