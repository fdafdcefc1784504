"""Random words that are the same on every machine and with every numpy."""

from enum import IntEnum

import numpy as np
import numpy.typing as npt


class Purpose(IntEnum):
    """Uses of random words. Each has its own stream, so no two share a word."""

    BATCH_ORDER = 0
    PROTOTYPES = 1
    TRAIN_NOISE = 2
    TEST_NOISE = 3
    AUGMENTATION = 4
    SPLIT = 5


def words(seed: int, purpose: Purpose, number: int, count: int) -> npt.NDArray[np.uint64]:
    """Return the first *count* words, uint64, of stream *number* of a *purpose*.

    Raw words, because numpy promises that they never change. It does not promise that of the
    numbers of its ``Generator``, and ranks or a resumed run may have another numpy.

    Args:
        seed: of the run or the split.
        purpose: what they are for; those of other purposes are unlike.
        number: of the stream, such as an epoch.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(purpose, number))
    return np.random.Philox(sequence).random_raw(count)
