"""The operations that a backward pass would run, without running it."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


def backward_operations(outputs: Iterable[Any], module: nn.Module) -> Counter[str]:
    """Count the operations behind *outputs* by name; parameters of *module* by their own names.

    Two runs with equal counts, and equal values at each operation, give equal gradients.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    waiting = [x.grad_fn for x in outputs if isinstance(x, Tensor) and x.grad_fn is not None]
    seen, counts = set(waiting), Counter[str]()
    while waiting:
        operation: Any = waiting.pop()
        leaf = getattr(operation, "variable", None)
        counts[operation.name() if leaf is None else names.get(id(leaf), "an input")] += 1
        for behind, _ in operation.next_functions:
            if behind is not None and behind not in seen:
                seen.add(behind)
                waiting.append(behind)
    return counts
