"""The names and rules of the file format, specified in docs/checkpoint-format.md.

No torch and no MPI here: a login node inspects checkpoints.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt

from hetmp.core.errors import HetmpError

FORMAT = "hetmp-checkpoint"
VERSION = 1

MODEL, BUFFERS, AVERAGE, OPTIMIZER = "model", "buffers", "average", "optimizer"
TRAINING, PLAN, META, EXTRA = "training", "plan", "meta", "extra"
GROUPS = (MODEL, BUFFERS, AVERAGE, OPTIMIZER, TRAINING, PLAN, META, EXTRA)
"""Groups of the root; a reader ignores other names."""

DIGEST, DTYPE, AXIS, OWNERS = "digest", "dtype", "axis", "owners"
"""Attributes of a dataset."""

LEAF_BYTES = 1 << 20
"""A chunk is as many rows of the first axis as fit in so many bytes, at least one."""

STORED = {
    "bool": "|b1",
    "uint8": "|u1",
    "int8": "|i1",
    "uint16": "<u2",
    "int16": "<i2",
    "uint32": "<u4",
    "int32": "<i4",
    "uint64": "<u8",
    "int64": "<i8",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "complex64": "<c8",
    "complex128": "<c16",
    "bfloat16": "<u2",  # its 16 bits as an unsigned integer
}
"""The stored type of each of torch's dtypes."""


def stored_dtype(name: str) -> np.dtype:
    """Return the dtype in the file for the dtype that torch calls *name*.

    Raises:
        HetmpError: the format has no rule for it.
    """
    if name not in STORED:
        raise HetmpError(
            f"a checkpoint cannot hold numbers of dtype {name}: it holds {', '.join(STORED)}"
        )
    return np.dtype(STORED[name])


def escaped(name: str) -> str:
    """Percent-encode what HDF5 would take for a path in a name.

    >>> escaped("layer/0.weight"), escaped("features.conv1.weight")
    ('layer%2F0.weight', 'features.conv1.weight')
    """
    link = quote(name, safe="!\"#$&'()*+,-.:;<=>?@[\\]^_`{|}~ ")
    return link.replace(".", "%2E") if set(link) <= {"."} else link


def unescaped(link: str) -> str:
    """Return the name that `escaped` made *link* of."""
    return unquote(link)


@dataclass(frozen=True)
class StoredShape:
    """A dataset's shape and how it is divided into chunks, whole rows of the first axis.

    Attributes:
        sizes: of the whole tensor.
        itemsize: bytes of a number.
    """

    sizes: tuple[int, ...]
    itemsize: int

    @property
    def numbers(self) -> int:
        """How many numbers there are."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """Bytes of all of them."""
        return self.numbers * self.itemsize

    @property
    def row(self) -> int:
        """Numbers in a row: all that one index of the first axis selects."""
        return math.prod(self.sizes[1:])

    @property
    def rows(self) -> int:
        """Rows in a chunk."""
        if not self.sizes or not self.numbers:
            return 1
        return min(self.sizes[0], max(1, LEAF_BYTES // (self.row * self.itemsize)))

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """A chunk's sizes; None for a scalar and for a tensor of no numbers."""
        return (self.rows, *self.sizes[1:]) if self.sizes and self.numbers else None

    def blocks(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield (first row, row behind the last) of runs of chunks of about *size* bytes."""
        if not self.chunks:
            return
        step = self.rows * max(1, size // (self.rows * self.row * self.itemsize))
        for first in range(0, self.sizes[0], step):
            yield first, min(first + step, self.sizes[0])


def leaves(shape: StoredShape, numbers: npt.NDArray[np.generic]) -> list[bytes]:
    """Return the SHA-256 of every chunk of *numbers*, which are whole chunks in order."""
    block = np.ascontiguousarray(numbers).reshape(-1).view(np.uint8)
    size = shape.rows * shape.row * shape.itemsize if shape.chunks else max(1, block.size)
    return [
        hashlib.sha256(block[i : i + size].data).digest()
        for i in range(0, max(1, block.size), size)
    ]


def root_digest(sizes: Sequence[int], dtype: str, digests: Iterable[bytes]) -> str:
    """Return a dataset's digest: of its dtype, its shape and its chunks' digests.

    Args:
        sizes: the shape.
        dtype: the name of the dtype.
        digests: of the chunks, in order.
    """
    heading = f"{dtype} {','.join(map(str, sizes))}\n".encode()
    return hashlib.sha256(heading + b"".join(digests)).hexdigest()


def digest_of(array: npt.NDArray[np.generic], dtype: str) -> str:
    """Return the digest of a whole array."""
    return root_digest(array.shape, dtype, leaves(StoredShape(array.shape, array.itemsize), array))
