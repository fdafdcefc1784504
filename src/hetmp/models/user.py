"""A user's own network, named as ``package.module:function``."""

import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import nn

from hetmp.core.errors import HetmpError
from hetmp.core.suggestions import nearest
from hetmp.core.users_code import is_users_file


def build(name: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Import the function that *name* says and call it with (*input_shape*, *classes*).

    An exception of the user's code other than a ``TypeError`` passes through as it is: its
    traceback is what helps.

    Raises:
        HetmpError: as `import_function`, or the function raises ``TypeError`` on the call, or
            returns no ``nn.Module``.
    """
    function = import_function(name)
    title = name.partition(":")[2]
    try:
        network = function(input_shape, classes)
    except TypeError as error:
        raise HetmpError(
            f"model {name!r}: {title}({input_shape}, {classes}) raised TypeError: "
            f"{error}{at_line(error)}; it is called with (input_shape, classes)"
        ) from error
    if not isinstance(network, nn.Module):
        raise HetmpError(
            f"model {name!r}: {title} returned a {type(network).__name__}, "
            "it must return a torch.nn.Module"
        )
    return network


def import_function(name: str) -> Callable[..., Any]:
    """Import the function that *name* says.

    Raises:
        HetmpError: *name* is not of that form, the module or the function is missing, or is not
            callable.
    """
    module_name, _, function_name = name.partition(":")
    parts = [*module_name.split("."), function_name]
    if not all(part.isidentifier() for part in parts):
        raise HetmpError(f"model {name!r} is not of the form package.module:function")

    module = _import(name, module_name)
    if not hasattr(module, function_name):
        known = [key for key, value in vars(module).items() if callable(value)]
        meant = nearest(function_name, known)
        raise HetmpError(
            f"model {name!r}: {module.__name__} ({getattr(module, '__file__', None)}) has no "
            f"{function_name!r}" + (f": did you mean '{module_name}:{meant}'?" if meant else "")
        )
    function = getattr(module, function_name)
    if not callable(function):
        raise HetmpError(
            f"model {name!r}: {function_name} is a {type(function).__name__}, "
            "not a function of (input_shape, classes)"
        )
    imported: Callable[..., Any] = function
    return imported


def at_line(error: BaseException) -> str:
    """Return `` at FILE:LINE``, the innermost line of the user's that raised *error*; or nothing.

    A file below the current directory is named from there.
    """
    frames = traceback.extract_tb(error.__traceback__)
    users = [
        frame
        for frame in frames
        if is_users_file(frame.filename) and not frame.filename.startswith("<frozen")
    ]
    if not users:
        return ""
    file, here = users[-1].filename, os.getcwd() + os.sep
    return f" at {file.removeprefix(here)}:{users[-1].lineno}"


def _import(name: str, module_name: str) -> ModuleType:
    # A console script starts with its own folder on the path, not the user's. The entry stays,
    # as with `python -m`: the module may import its neighbours later.
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if missing == module_name or module_name.startswith(f"{missing}."):
            siblings = [module.name for module in pkgutil.iter_modules(_places(missing, here))]
            meant = nearest(missing.rpartition(".")[2], siblings, cutoff=0.6)
            hint = f": did you mean {meant!r}?" if meant else ";"
            raise HetmpError(
                f"model {name!r}: there is no module {missing!r}, neither installed nor in {here}"
                f"{hint} Run from the folder that holds it, or put that folder on PYTHONPATH"
            ) from error
        raise HetmpError(
            f"model {name!r}: module {module_name} needs {missing!r}, which is not installed"
        ) from error


def _places(missing: str, here: str) -> list[str]:
    """List the places where the missing module was looked for: in its package, or *here*."""
    package = sys.modules.get(missing.rpartition(".")[0])
    return list(getattr(package, "__path__", [here]))
