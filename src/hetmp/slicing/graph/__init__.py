"""A user's ``nn.Module`` -> ordered operations: read through torch.fx, on tensors without data."""

from hetmp.slicing.graph.graph import ModelGraph, Node, Trace, fingerprint, place
from hetmp.slicing.graph.inputs import Inputs
from hetmp.slicing.graph.read import read_graph, skeleton_of
from hetmp.slicing.graph.tracing import leaf

__all__ = [
    "Inputs",
    "ModelGraph",
    "Node",
    "Trace",
    "fingerprint",
    "leaf",
    "place",
    "read_graph",
    "skeleton_of",
]
