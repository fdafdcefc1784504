"""Build the data set and the network's outline from a configuration."""

import torch
from torch import nn

from hetmp import data, models
from hetmp.cluster import Group
from hetmp.data import Dataset
from hetmp.run.config import TrainConfig


def load_dataset(config: TrainConfig, group: Group) -> Dataset:
    """Load the data set that *config* names. Collective.

    Raises:
        HetmpError: on every rank: an unknown name, wrong settings, or missing or damaged files.
    """
    return data.load(config.data, group, seed=config.seed, **config.data_settings())


def outline(config: TrainConfig, dataset: Dataset) -> nn.Module:
    """Build the network of *config* for *dataset* on the meta device, without memory."""
    with torch.device("meta"):
        module = models.build(config.model, dataset.input_shape, dataset.classes)
    return module.to(getattr(torch, config.dtype))
