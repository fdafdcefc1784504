"""Pickles of plain values and NumPy arrays, read without running anything they name.

A pickle is a program: Python's own reader calls whatever it names. Here every name becomes a
`Fragment`, which keeps what it would have been called with and does nothing; and names other than
those that arrays are made of are refused. NumPy itself never sees what the file says.
"""

import io
import pickle
import pickletools
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from hetmp.core.errors import HetmpError

NAMES = {
    ("_codecs", "encode"): "encode",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("numpy.core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy._core.multiarray", "_reconstruct"): "reconstruct",
}
"""The callables of which an array is pickled, by module and name, for NumPy 1 and 2."""

NEWEST = 4
"""The newest protocol that is read. The files of CIFAR have 2; 5 has buffers of its own."""


class Fragment:
    """Stands for one of ``NAMES``, and for what calling it would have made."""

    def __init__(self, name: str, arguments: tuple[Any, ...] = ()) -> None:
        self.name = name
        self.arguments = arguments
        self.state: Any = None

    def __call__(self, *arguments: Any) -> Any:
        if self.name == "encode":  # how Python 3 writes bytes in the old protocols
            text, encoding = arguments
            if encoding not in ("latin1", b"latin1"):
                raise ValueError(f"bytes written as {encoding!r}")
            return text.encode("latin1")
        return Fragment(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    def __init__(self, where: str, content: bytes) -> None:
        # Strings of Python 2 are bytes; the pixels are among them.
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._where = where

    def find_class(self, module: str, name: str) -> Fragment:
        if (module, name) not in NAMES:
            raise HetmpError(
                f"{self._where} wants to run code ({module}.{name}), which no data set needs: it "
                "was not run; get the file again, from a source that you trust"
            )
        return Fragment(NAMES[module, name])


def read_pickle(where: str, content: bytes) -> dict[str, Any]:
    """Return a pickle's table: plain values and, unread yet, arrays for `byte_array`.

    Args:
        where: the source of the content, for the message.

    Raises:
        HetmpError: it is damaged, names other callables, or holds no table.
    """
    try:
        # Unread: numbers so large that the reader itself would take all memory.
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.proto > NEWEST:
                raise ValueError(f"written in a protocol newer than {NEWEST}")
            if opcode.name in ("LONG_BINPUT", "PUT") and int(argument or 0) > len(content):
                raise ValueError(f"item {argument} in {len(content)} bytes")
        table = _Reader(where, content).load()
    except HetmpError:
        raise
    except Exception as error:  # damage makes the reader raise nearly anything
        raise HetmpError(
            f"{where} is not a pickle, or is damaged ({error}): get it again"
        ) from error
    if not isinstance(table, dict):
        raise HetmpError(f"{where} holds a {type(table).__name__}, not a table: get the right file")
    return {_text(key): value for key, value in table.items()}


def byte_array(where: str, value: Any) -> npt.NDArray[np.uint8]:
    """Return the array of unsigned bytes that a `Fragment` stands for.

    Raises:
        HetmpError: it is not an array, has another type, or its bytes do not fill its shape.
    """
    try:
        _, shape, dtype, by_column, raw = value.state
        kind = _text(dtype.arguments[0])
        sides = tuple(int(side) for side in shape)
        assert isinstance(raw, bytes | list)
    except Exception as error:  # anything can stand where the array should
        raise HetmpError(f"{where} is not an array, but a {type(value).__name__}") from error
    if kind.lstrip("|") != "u1" or isinstance(raw, list):
        raise HetmpError(f"{where} has numbers of type {kind}, not bytes (u1): get the right file")
    if min(sides, default=0) < 0 or prod(sides) != len(raw):
        raise HetmpError(f"{where} of shape {sides} comes with {len(raw)} bytes: get it again")
    # A copy, for a tensor is made of it, and those can be written to.
    return np.array(np.frombuffer(raw, np.uint8)).reshape(sides, order="F" if by_column else "C")


def _text(key: Any) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)
