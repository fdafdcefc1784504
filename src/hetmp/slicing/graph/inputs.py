"""The arguments of a module's call: which are tensors, and which are fixed when it is read."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hetmp.core.errors import HetmpError
from hetmp.ops import Ref, filled, references
from hetmp.slicing.rows import Input, Rows


@dataclass(frozen=True)
class Inputs:
    """How a call's arguments become named values.

    Attributes:
        title: the class of the user's module.
        signature: of its ``forward``, without ``self``.
        arguments: every parameter's argument, with a ``Ref`` for each tensor; the rest is fixed.
    """

    title: str
    signature: inspect.Signature
    arguments: Mapping[str, object]

    @property
    def names(self) -> list[str]:
        """The names of the tensors, in order."""
        return list(references(dict(self.arguments)))

    def bind(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, Input]:
        """Return the tensors of a call, by name; ``Rows`` where it has those in their place.

        Raises:
            HetmpError: an argument is missing or too much, is not a tensor where one is needed,
                or differs from the value that the module was read with.
        """
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise HetmpError(f"{self.title} was called with {error}") from None
        bound.apply_defaults()
        tensors: dict[str, Input] = {}
        for name, wanted in self.arguments.items():
            self._match(name, wanted, bound.arguments[name], tensors)
        return tensors

    def of_example(self, example_input: object) -> dict[str, Tensor]:
        """Return the tensors of an example_input, by name; nothing where there is none."""
        if example_input is None:
            return {}
        tensors: dict[str, Tensor] = {}
        for name, value in self.bind(*_as_arguments(example_input)).items():
            if isinstance(value, Rows):
                raise _rows_as_example(name)
            tensors[name] = value
        return tensors

    def _match(self, name: str, wanted: object, value: object, tensors: dict[str, Input]) -> None:
        if isinstance(wanted, Ref):
            if not isinstance(value, Tensor | Rows):
                raise HetmpError(f"{self.title} takes a tensor for {name}, got {value!r}")
            tensors[wanted.name] = value
        elif isinstance(wanted, tuple | list):
            if not isinstance(value, tuple | list) or len(value) != len(wanted):
                raise HetmpError(f"{self.title} takes {len(wanted)} items for {name}")
            for i, (item, other) in enumerate(zip(wanted, value, strict=True)):
                self._match(f"{name}[{i}]", item, other, tensors)
        elif isinstance(wanted, Mapping):
            if not isinstance(value, Mapping) or set(value) != set(wanted):
                raise HetmpError(f"{self.title} takes {', '.join(wanted) or 'nothing'} in {name}")
            for key, item in wanted.items():
                self._match(f"{name}[{key!r}]", item, value[key], tensors)
        elif isinstance(value, Tensor) or not (value is wanted or value == wanted):
            shown = "a tensor" if isinstance(value, Tensor) else repr(value)
            raise HetmpError(
                f"{self.title} was sliced for {name}={wanted!r}, got {shown}: give slice_model an "
                f"example_input with {name} in it"
            )


@dataclass(frozen=True)
class Example:
    """What is known of the inputs before a module is traced.

    Attributes:
        tensors: by name, of which only shapes and dtypes are looked at.
        guessed: whether the sizes are hetmp's own guess: the module may not depend on them.
        device: where the module is taken to compute.
    """

    tensors: Mapping[str, Tensor]
    guessed: bool
    device: torch.device


def read_inputs(module: nn.Module, example_input: object) -> tuple[Inputs, dict[str, Tensor]]:
    """Return (the module's inputs, the example's tensors by name).

    Raises:
        HetmpError: the example does not fit, or is needed and missing.
    """
    title = type(module).__name__
    signature = inspect.signature(type(module).forward)
    signature = signature.replace(parameters=list(signature.parameters.values())[1:])
    if example_input is None:
        return _without_example(title, signature), {}
    args, kwargs = _as_arguments(example_input)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise HetmpError(f"example_input does not fit {title}: {error}") from None
    bound.apply_defaults()
    examples: dict[str, Tensor] = {}
    arguments = {name: _named(name, value, examples) for name, value in bound.arguments.items()}
    if not examples:
        raise HetmpError("example_input contains no tensor: give a batch, or arguments with one")
    return Inputs(title, signature, arguments), examples


def _as_arguments(example: object) -> tuple[tuple[object, ...], Mapping[str, object]]:
    if isinstance(example, Mapping):
        return (), example
    return (tuple(example) if isinstance(example, tuple | list) else (example,)), {}


def _named(name: str, value: object, examples: dict[str, Tensor]) -> object:
    """Replace every tensor of *value* by a ``Ref``, and add it to the examples."""
    if isinstance(value, Rows):
        raise _rows_as_example(name)
    if isinstance(value, Tensor):
        examples[name] = value
        return Ref(name)
    if isinstance(value, tuple | list):
        items = [_named(f"{name}_{i}", item, examples) for i, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        return {key: _named(f"{name}_{key}", item, examples) for key, item in value.items()}
    return value


def _rows_as_example(name: str) -> HetmpError:
    return HetmpError(f"{name!r} of example_input is hetmp.Rows: give a whole batch as an example")


def _without_example(title: str, signature: inspect.Signature) -> Inputs:
    """Take every parameter without a default for a tensor."""
    arguments: dict[str, object] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments[name] = {}
        elif parameter.kind is parameter.VAR_POSITIONAL:
            arguments[name] = ()
        elif parameter.default is parameter.empty:
            arguments[name] = Ref(name)
        else:
            arguments[name] = parameter.default
    names = list(references(arguments))
    if len(names) != 1:
        takes = f"more than one input ({', '.join(names)})" if names else "no named input"
        raise HetmpError(
            f"{title} takes {takes}: give slice_model an example_input, a tuple of tensors or a "
            "dict by name"
        )
    return Inputs(title, signature, arguments)


def proxied(
    inputs: Inputs, proxy: Callable[[str], object]
) -> tuple[list[object], dict[str, object]]:
    """Return the arguments of a call with ``proxy(name)`` in the place of every tensor."""
    args: list[object] = []
    kwargs: dict[str, object] = {}
    for name, parameter in inputs.signature.parameters.items():
        argument = filled(inputs.arguments.get(name, parameter.default), proxy)
        if parameter.kind is parameter.VAR_POSITIONAL:
            args += argument
        elif parameter.kind is parameter.VAR_KEYWORD:
            kwargs.update(argument)
        elif parameter.kind is parameter.KEYWORD_ONLY:
            kwargs[name] = argument
        else:
            args.append(argument)
    return args, kwargs
