"""What a run computes, from its configuration: the data set and the network's outline."""

import torch
from torch import nn

from hetmp import data, models
from hetmp.config import TrainConfig
from hetmp.data import Dataset


def load_dataset(config: TrainConfig) -> Dataset:
    """The data set that *config* names.

    Raises:
        HetmpError: there is none of that name, or its sizes are wrong.
    """
    return data.load(
        config.data,
        seed=config.seed,
        shape=config.shape,
        classes=config.classes,
        samples=config.samples,
    )


def outline(config: TrainConfig, dataset: Dataset) -> nn.Module:
    """The network of *config* for *dataset*, on the meta device: it takes no memory."""
    with torch.device("meta"):
        module = models.build(config.model, dataset.input_shape, dataset.classes)
    return module.to(getattr(torch, config.dtype))
