"""What a data set is: images and labels in memory, and how they were made ready."""

from dataclasses import dataclass

from torch import Tensor

from hetmp.errors import HetmpError


# Tensors compare element by element, so the equality that dataclasses offer would raise.
@dataclass(frozen=True, eq=False)
class Split:
    """The training or the test part of a data set."""

    images: Tensor
    """(n, c, *spatial), float32."""
    labels: Tensor
    """int64, each 0 to classes - 1: (n,) for a class per image, (n, *spatial) per pixel."""

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise HetmpError(
                f"{len(self.images)} images with {len(self.labels)} labels: "
                "give one label per image"
            )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, ready to train on. Every rank holds all of it."""

    name: str
    """What `load` takes."""
    train: Split
    """What the network learns from."""
    test: Split
    """What it is judged by. None of its images is in the training part."""
    classes: int
    """How many classes the labels tell apart."""
    input_shape: tuple[int, ...]
    """Channels, then the spatial sides of one image in pixels."""
    split_name: str
    """How the two parts were made; never reused for another way."""
    split_seed: int
    """Which image is in which part, given `split_name`."""
    mean: tuple[float, ...]
    """Per channel, in units of the source: what was subtracted from both parts."""
    std: tuple[float, ...]
    """Per channel, in units of the source: what both parts were then divided by."""
