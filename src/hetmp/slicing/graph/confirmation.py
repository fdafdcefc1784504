"""What a module decides by while it is traced, checked whenever it runs: ``confirm``."""

from typing import Any

from hetmp.core.errors import HetmpError


class Unconfirmed(HetmpError):
    """A value that a module depends on is another one than when the module was read."""


def confirm(value: object, expected: object, line: str, of_sizes: bool) -> None:
    """Check, in a traced module, that what its branches or loops depend on is unchanged.

    Raises:
        Unconfirmed: on every rank, because sizes are those of the whole tensor.
    """
    if value == expected:
        return
    at = f" at {line}" if line else ""
    if of_sizes:
        raise Unconfirmed(
            f"the module depends on a number{at} that is {value} here and was {expected} in the "
            "example that it was sliced with: give slice_model an example_input of the sizes that "
            "it will meet"
        )
    raise Unconfirmed(
        f"the module depends on a setting{at} that is {value} here and was {expected} when the "
        "module was read: slice it under the setting that it will meet, or mark its module with "
        "hetmp.leaf(module)"
    )


DEVICES = ("is_cpu", "is_cuda", "is_meta", "is_mps", "is_xpu")
"""Attributes of a tensor that tell its kind of device."""

_SETTINGS = ("dtype", "device", "requires_grad", *DEVICES)
"""Attributes of a tensor that do not depend on its sizes."""


def is_size(node: Any) -> bool:
    """Return whether a confirmed value is computed from a tensor's sizes."""
    if node.op != "call_function":
        return True
    if node.target is getattr:
        return node.args[1] not in _SETTINGS and (
            node.args[0].target is not getattr or is_size(node.args[0])
        )
    return any(map(is_size, node.all_input_nodes))
