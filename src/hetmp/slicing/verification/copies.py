"""Two copies of a module to compare: as its class runs it, and as it was read.

The copy that was read has its parameters in the module's own memory, with gradients of their own.
All else is copied: a forward pass changes buffers, and code of the user's may change parameters.
"""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hetmp.ops import filled, rule_for
from hetmp.slicing.graph import (
    Mode,
    ModelGraph,
    Trace,
    attribute,
    computed_tensors,
    proxied,
    without_hooks,
)
from hetmp.slicing.table import tensors_of


def own_copy(module: nn.Module) -> nn.Module:
    """Return a copy of *module* that runs as its class says."""
    memo = computed_tensors(module) | without_hooks(module)
    for tensor in tensors_of(module).values():
        memo[id(tensor)] = fresh = _fresh(tensor)
        if isinstance(fresh, nn.Parameter):
            fresh.data = fresh.data.clone()
    return copy.deepcopy(module, memo)


class ReadCopy(nn.Module):
    """A copy of a module that runs the operations that were read of it, all on one rank.

    Args:
        graph: what was read of *module*.
        module: with values.

    Attributes:
        place: of the operation that runs, for messages.
    """

    def __init__(self, graph: ModelGraph, module: nn.Module) -> None:
        super().__init__()
        self.graph = graph
        self.place = ""
        values, made = tensors_of(module), dict[int, Tensor]()
        memo: dict[int, Any] = {}
        self._own_code = tuple(
            f"{node.path}."
            for trace in graph.traces
            for node in trace.nodes
            if node.call.layer is not None and rule_for(node.call.layer) is None
        )
        for name, tensor in tensors_of(graph.skeleton).items():
            whole = values[name]
            memo[id(tensor)] = fresh = made.setdefault(id(whole), _fresh(whole))
            if isinstance(fresh, nn.Parameter) and self.runs_own_code(name):
                fresh.data = fresh.data.clone()
        self.whole = copy.deepcopy(graph.skeleton, memo)

    def runs_own_code(self, name: str) -> bool:
        """Return whether a parameter is in a part that is kept as one, whose code may change it."""
        return name.startswith(self._own_code)

    def forward(self, mode: Mode, tensors: Mapping[str, Tensor]) -> Any:
        """Return what the operations of *mode* give for the inputs *tensors*, by name."""
        trace = self.graph.modes[mode]
        device = next(iter(tensors.values())).device
        values: dict[str, Any] = {name: tensors[entry] for name, entry in trace.entries.items()}
        for name, path in trace.attributes.items():
            constant = self.graph.constants.get(path)
            values[name] = attribute(self.whole, path) if constant is None else constant.to(device)
        self._run(trace, values)
        return filled(trace.result, values.__getitem__)

    def _run(self, trace: Trace, values: dict[str, Any]) -> None:
        for node in trace.nodes:
            self.place = node.place
            if node.call.layer is not None and node.line:
                self.place += f" at {node.line}"
            args = filled(node.call.args, values.__getitem__)
            kwargs = filled(node.call.kwargs, values.__getitem__)
            with node.scope.entered():
                if node.call.layer is not None:
                    values[node.name] = self.whole.get_submodule(node.path)(*args, **kwargs)
                else:
                    values[node.name] = node.call.invoke(args, kwargs)


def call_own(module: nn.Module, graph: ModelGraph, tensors: Mapping[str, Tensor]) -> Any:
    """Call *module* with *tensors* in the place of the inputs that the graph names."""
    args, kwargs = proxied(graph.inputs, tensors.__getitem__)
    return module(*args, **kwargs)


def _fresh(tensor: Tensor) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
    return tensor.detach().clone()
