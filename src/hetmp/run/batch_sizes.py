"""The batches of a run, by their sizes: one of a single image is too small for some networks."""

import math

from hetmp.core.errors import HetmpError
from hetmp.data import count_batches
from hetmp.ops import Statistics
from hetmp.run.config import TrainConfig
from hetmp.slicing.graph import ModelGraph, Node


def check_batches(config: TrainConfig, graph: ModelGraph, images: int, steps: int) -> None:
    """Refuse a run that comes to a batch of one image where batch norm needs more.

    What is not known of the network here is refused when the batch comes.

    Args:
        config: of the run.
        graph: the network, read with batches of the data's images.
        images: how many there are to train on.
        steps: how many the run takes.

    Raises:
        HetmpError: naming the norm, the batch and what to change.
    """
    norm = _first_with_one_value(graph)
    if norm is None:
        return
    needs = f"{norm.place} has 1 value per channel then, and batch norm needs more in training"
    size, rest = min(config.batch_size, images), images % config.batch_size
    if size == 1:
        raise HetmpError(f"a batch is 1 image: {needs}: train on batches of more (--batch-size)")
    batches = [(size, "a batch")]
    reached = steps >= count_batches(images, config.batch_size)
    if rest and rest != images and reached and not config.drop_last:
        if rest == 1:
            raise HetmpError(
                f"the last of the batches of {config.batch_size} of {images:,} images is 1 image: "
                f"{needs}: leave it out with --drop-last, or choose another --batch-size"
            )
        batches.append((rest, "the last batch"))
    for batch, what in batches:
        part = math.ceil(batch / config.accumulate)
        if part == 1 or batch % part == 1:
            raise HetmpError(
                f"{what} of {batch} images has a part of 1 image with --accumulate "
                f"{config.accumulate}: {needs}: choose another --accumulate or --batch-size"
            )


def _first_with_one_value(graph: ModelGraph) -> Node | None:
    """Return the first batch norm that gets one value per channel from a batch of one image."""
    batch = next((len(x) for x in graph.example.tensors.values() if x.dim()), 0)
    for node in graph.training.nodes:
        statistics = Statistics.of(node.call)
        if statistics is None or statistics.per_image or node.path in graph.held[True]:
            continue
        # Two runs, with a batch of one image more in the second, say how long one image's part is.
        sizes = node.call.operand.sizes
        if len(sizes) == 2 and sizes[0][2:] == sizes[1][2:]:
            own = sizes[1][0] - sizes[0][0]
            if statistics.values((sizes[0][0] - own * (batch - 1), *sizes[0][1:])) == 1:
                return node
    return None
