"""Labels as they are found in files, checked."""

from typing import Any

import numpy as np
import numpy.typing as npt

from hetmp.errors import HetmpError


def checked_labels(
    where: str, labels: npt.NDArray[Any], classes: int | None = None
) -> npt.NDArray[np.int64]:
    """*labels* as int64, each 0 or more and, with *classes*, below it.

    Args:
        where: what they are the labels of, for the message.

    Raises:
        HetmpError: no integers, none at all, or one out of range: which and where.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise HetmpError(f"{where}: labels are whole numbers, these are {labels.dtype}")
    if labels.size == 0:
        raise HetmpError(f"{where}: there are no labels")
    wrong = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
    if wrong.any():
        at = np.unravel_index(int(np.argmax(wrong)), labels.shape)
        limit = "0 or more" if classes is None else f"0 to {classes - 1}"
        place = ", ".join(str(int(i)) for i in at)
        raise HetmpError(
            f"{where}: label {int(labels[at])} of image {place} is out of range, {limit}"
            if labels.ndim == 1
            else f"{where}: label {int(labels[at])} at ({place}) is out of range, {limit}"
        )
    return labels.astype(np.int64)
