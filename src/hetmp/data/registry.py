"""The data sets by name."""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, Protocol

from hetmp.cluster import Group
from hetmp.core.suggestions import unknown_name
from hetmp.data.dataset import Dataset
from hetmp.data.options import Options
from hetmp.data.sets import (
    cifar,
    digits,
    folder,
    hdf5,
    hyperspectral,
    mnist,
    npz,
    segmentation,
    synthetic,
)
from hetmp.data.survey import Found, read_once


class Loader(Protocol):
    """A module that loads a data set, in two steps.

    Attributes:
        NAME: the name that `load` takes.
        OPTIONS: the settings that apply to it.
    """

    NAME: str
    OPTIONS: tuple[str, ...]

    def survey(self, options: Options) -> Found:
        """Check the files and return what all ranks must know, as arrays. Not collective.

        Called on rank 0 alone; what cannot be read in parts is read here, once.
        """
        ...

    def assemble(self, options: Options, metadata: Found) -> Dataset:
        """Return the data set, on every rank alike. Opens files, but reads no images."""
        ...


def _loaders() -> dict[str, Loader]:
    ours: tuple[Any, ...] = (digits, segmentation, synthetic)
    published: tuple[Any, ...] = (mnist, cifar.CIFAR10, cifar.CIFAR100)
    yours: tuple[Any, ...] = (folder, hdf5, npz, hyperspectral)
    loaders = (*published, *yours, *ours)
    return {loader.NAME: loader for loader in loaders}


def names() -> list[str]:
    """Return the data sets' names, in alphabetical order."""
    return sorted(_loaders())


def options_of(name: str | None) -> tuple[str, ...]:
    """Return the settings that apply to data set *name*; none if it is unknown."""
    loader = _loaders().get(name or "")
    return loader.OPTIONS if loader is not None else ()


def load(name: str, group: Group | None = None, **settings: Any) -> Dataset:
    """Load the data set *name*, the same on every rank and every machine.

    Collective where a *group* is given: rank 0 checks the files and reads once for all what
    cannot be read in parts. Without one, this process does it all.

    Args:
        name: one of `names`.
        settings: fields of `Options`; data/README.md lists those of each data set.

    Raises:
        HetmpError: on every rank: an unknown name, a value out of range, an option of another
            data set, a file that is missing or damaged.
    """
    with group.together() if group is not None else nullcontext():
        loader, options = _checked(name, settings)
    metadata = read_once(group, partial(loader.survey, options))
    with group.together() if group is not None else nullcontext():
        return loader.assemble(options, metadata)


def _checked(name: str, settings: Mapping[str, Any]) -> tuple[Loader, Options]:
    """Return the loader of data set *name* and its options, checked."""
    loaders = _loaders()
    if name not in loaders:
        raise unknown_name("data set", name, names())
    options = Options(**{key: value for key, value in settings.items() if value is not None})
    takers = {
        option: [other for other in names() if option in loaders[other].OPTIONS]
        for option in Options.names()
    }
    options.refuse_others(name, loaders[name].OPTIONS, takers)
    return loaders[name], options
