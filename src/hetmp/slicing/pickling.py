"""Pickles of a sliced model: refused.

A pickle would hold one rank's slices and the ranks that it had, of which nothing can be used
elsewhere. Copies in memory are none of this: they share the ranks.
"""

import copy
from collections.abc import Iterator, Mapping
from types import MethodType
from typing import Any, NoReturn

import torch
from torch import nn
from typing_extensions import Self

from hetmp.core.errors import HetmpError


class NotPickled:
    """A part of a class that copies in memory as any object does, and is not pickled."""

    __dict__: dict[str, Any]

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse a pickle: ``torch.save(model)``, a process that is spawned with it.

        Raises:
            HetmpError: always.
        """
        raise HetmpError(
            f"a {type(self).__name__} cannot be pickled or given to torch.save, as this rank has "
            "only a slice of it: hetmp.save(path, model) keeps the whole network, and "
            "torch.save(hetmp.merge_model(model), path) its state_dict"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def __copy__(self) -> Self:
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied


def held_in(value: Any) -> Iterator[NotPickled]:
    """Yield what must not be pickled in *value*: in modules, containers, and plain objects.

    Of a plain object's attributes one level is looked at.
    """
    return _parts(value, set(), inside=True)


def _parts(value: Any, seen: set[int], *, inside: bool) -> Iterator[NotPickled]:
    if value is None or isinstance(value, str | bytes | int | float | torch.Tensor):
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, NotPickled):
        yield value
    elif isinstance(value, nn.Module):
        yield from (module for module in value.modules() if isinstance(module, NotPickled))
    elif isinstance(value, MethodType):
        yield from _parts(value.__self__, seen, inside=inside)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _parts(item, seen, inside=inside)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _parts(item, seen, inside=inside)
    elif inside and _goes_with_its_attributes(type(value)):
        for item in list(getattr(value, "__dict__", {}).values()):
            yield from _parts(item, seen, inside=False)


def _goes_with_its_attributes(kind: type) -> bool:
    """Return whether a pickle of an object of class *kind* has all that the object has."""
    own = "__reduce_ex__", "__reduce__", "__getstate__"
    return all(getattr(kind, name, None) is getattr(object, name, None) for name in own)
