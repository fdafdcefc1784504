"""Small modules to read, and what is told of them."""

import pytest
from torch import nn

from hetmp.core.errors import HetmpError
from hetmp.slicing.graph import ModelGraph, Trace, read_graph


class Running(nn.Module):
    """Runs *run* on its input, with some layers at hand and those that are given by name."""

    def __init__(self, run, **layers: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


def read(run, example_input=None, **layers: nn.Module) -> ModelGraph:
    """What is read of a ``Running`` module."""
    return read_graph(Running(run, **layers), example_input)


def titles(trace: ModelGraph | Trace) -> list[str]:
    """What is called, in order."""
    return [node.call.title for node in trace.nodes]


def refusal(module, example_input=None) -> str:
    """Why a module, or a function run by one, cannot be read."""
    runs = callable(module) and not isinstance(module, nn.Module | type)
    with pytest.raises(HetmpError) as refused:
        read_graph(Running(module) if runs else module, example_input)
    return str(refused.value)
