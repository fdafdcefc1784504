"""A user's ``nn.Module`` -> ordered operations: read through torch.fx, on tensors without data."""

from hetmp.slicing.graph.confirmation import Unconfirmed, confirm
from hetmp.slicing.graph.graph import (
    EVALUATION,
    MODES,
    TRAINING,
    Mode,
    ModelGraph,
    Node,
    Trace,
    fingerprint,
    operations_mark,
    place,
)
from hetmp.slicing.graph.inputs import Example, Inputs, proxied
from hetmp.slicing.graph.leaf import leaf
from hetmp.slicing.graph.lines import at_line, users_frame
from hetmp.slicing.graph.meta_run import attribute, on_meta
from hetmp.slicing.graph.module_calls import ModuleCall, rebuilt
from hetmp.slicing.graph.read import check_kind, read_graph
from hetmp.slicing.graph.scope import PLAIN, Scope
from hetmp.slicing.graph.skeleton import computed_tensors, skeleton_of
from hetmp.slicing.graph.subclasses import as_users_class
from hetmp.slicing.graph.users_hooks import HOOKS, hooks_of, without_hooks

__all__ = [
    "EVALUATION",
    "HOOKS",
    "MODES",
    "PLAIN",
    "TRAINING",
    "Example",
    "Inputs",
    "Mode",
    "ModelGraph",
    "ModuleCall",
    "Node",
    "Scope",
    "Trace",
    "Unconfirmed",
    "as_users_class",
    "at_line",
    "attribute",
    "check_kind",
    "computed_tensors",
    "confirm",
    "fingerprint",
    "hooks_of",
    "leaf",
    "on_meta",
    "operations_mark",
    "place",
    "proxied",
    "read_graph",
    "rebuilt",
    "skeleton_of",
    "users_frame",
    "without_hooks",
]
