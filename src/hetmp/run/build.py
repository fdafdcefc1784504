"""What a run computes, from its configuration: the data set and the network's outline."""

import torch
from torch import nn

from hetmp import data, models
from hetmp.cluster import Group
from hetmp.data import Dataset
from hetmp.run.config import TrainConfig


def load_dataset(config: TrainConfig, group: Group) -> Dataset:
    """The data set that *config* names. Collective.

    Raises:
        HetmpError: on every rank: there is none of that name, its settings are wrong, or its
            files are missing or damaged.
    """
    return data.load(config.data, group, seed=config.seed, **config.data_settings())


def outline(config: TrainConfig, dataset: Dataset) -> nn.Module:
    """The network of *config* for *dataset*, on the meta device: it takes no memory."""
    with torch.device("meta"):
        module = models.build(config.model, dataset.input_shape, dataset.classes)
    return module.to(getattr(torch, config.dtype))
