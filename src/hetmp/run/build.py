"""Build the data set and the network's outline from a configuration."""

from torch import Tensor, nn

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


def outline(config: TrainConfig, dataset: Dataset) -> tuple[nn.Module, Tensor]:
    """Return the network of *config* and a batch of *dataset*, on the meta device."""
    return models.outline(
        config.model,
        dataset.input_shape,
        dataset.classes,
        batch_size=config.batch_size,
        dtype=config.dtype,
    )
