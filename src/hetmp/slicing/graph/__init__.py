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
    place,
)
from hetmp.slicing.graph.inputs import Example, Inputs, proxied
from hetmp.slicing.graph.leaf import leaf
from hetmp.slicing.graph.lines import users_frame, users_line
from hetmp.slicing.graph.meta_run import generators_kept
from hetmp.slicing.graph.read import check_kind, read_graph
from hetmp.slicing.graph.scope import PLAIN, Scope
from hetmp.slicing.graph.skeleton import computed_tensors, skeleton_of

__all__ = [
    "EVALUATION",
    "MODES",
    "PLAIN",
    "TRAINING",
    "Example",
    "Inputs",
    "Mode",
    "ModelGraph",
    "Node",
    "Scope",
    "Trace",
    "Unconfirmed",
    "check_kind",
    "computed_tensors",
    "confirm",
    "fingerprint",
    "generators_kept",
    "leaf",
    "place",
    "proxied",
    "read_graph",
    "skeleton_of",
    "users_frame",
    "users_line",
]
