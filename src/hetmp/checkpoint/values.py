"""Python values in HDF5's native form: numbers, strings, arrays, and dicts of these."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hetmp.checkpoint.format import STORED, escaped, stored_dtype, unescaped
from hetmp.core.errors import HetmpError

TEXT = "utf-8"
"""The dtype attribute of strings, which have a fixed length in bytes and are padded with zeros."""

Array = npt.NDArray[np.generic]


def flattened(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, Array, str]]:
    """Yield (path, array, dtype's name) of every value in nested dicts.

    Raises:
        HetmpError: a value that HDF5 has no native form for, with its path.
    """
    for name, value in values.items():
        if not isinstance(name, str) or not name:
            raise HetmpError(f"{above}: names in a checkpoint are strings, got {name!r}")
        path = f"{above}/{escaped(name)}"
        if isinstance(value, Mapping):
            yield from flattened(value, path)
        else:
            yield (path, *as_array(value, path))


def as_array(value: Any, path: str) -> tuple[Array, str]:
    """Return (array in its stored dtype, the dtype's name) of a number, string or array."""
    if hasattr(value, "detach"):  # a torch tensor
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            raise HetmpError(f"{path}: give a bfloat16 tensor as .float()")
        value = value.numpy()
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unlike lengths
        array = np.array(None)
    if array.dtype.kind == "U":
        encoded = np.char.encode(array, "utf-8")
        if array.size == 0 or encoded.dtype.itemsize == 0:
            encoded = encoded.astype("S1")
        return encoded, TEXT
    name = array.dtype.name
    if name not in STORED:
        raise HetmpError(
            f"{path}: a checkpoint holds numbers, strings, arrays of them and dicts, got "
            f"{value!r:.80} ({type(value).__name__})"
        )
    return array.astype(stored_dtype(name), copy=False), name


def as_value(array: Array, dtype: str) -> Any:
    """Return a Python value for an array without axes of Python's types; else the array."""
    if dtype == TEXT:
        decoded = np.char.decode(array.astype(np.bytes_), "utf-8")
        return str(decoded) if array.ndim == 0 else decoded
    if array.ndim == 0:
        return array.item() if dtype in ("bool", "int64", "float64", "complex128") else array[()]
    return array


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuild nested dicts from values by path: undoes ``flattened``."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *above, last = path.split("/")
        place = tree
        for part in above:
            place = place.setdefault(unescaped(part), {})
        place[unescaped(last)] = value
    return tree
