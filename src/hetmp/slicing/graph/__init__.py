"""A user's ``nn.Module`` -> ordered operations: read through torch.fx, on tensors without data."""

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
from hetmp.slicing.graph.inputs import Inputs
from hetmp.slicing.graph.read import read_graph, skeleton_of
from hetmp.slicing.graph.scope import PLAIN, Scope
from hetmp.slicing.graph.tracer import leaf

__all__ = [
    "EVALUATION",
    "MODES",
    "PLAIN",
    "TRAINING",
    "Inputs",
    "Mode",
    "ModelGraph",
    "Node",
    "Scope",
    "Trace",
    "fingerprint",
    "leaf",
    "place",
    "read_graph",
    "skeleton_of",
]
