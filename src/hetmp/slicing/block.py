"""The parts of a sliced model that are not layers: the model itself, and blocks.

Blocks hold layers under the user's names. Their class and methods are gone, but code that selects
by type finds them: ``isinstance`` looks at ``__class__``.
"""

from typing import Any, Protocol

from torch import Tensor, nn
from typing_extensions import Self

from hetmp.cluster import AgreedError

_TORCHS = frozenset((*vars(nn.Module()), *vars(nn.Module))) - {"forward"}
"""The attributes that torch gives every module, and sets itself."""


class Home(Protocol):
    """What knows the attributes of the module that was sliced."""

    def get(self, path: str, name: str) -> Any:
        """Return an attribute of the user's module at *path*."""

    def set(self, path: str, name: str, value: object) -> None:
        """Take an attribute of the part at *path*, or refuse it."""

    def check_layers(self) -> None:
        """Take what was set on layers, or refuse it."""

    def assigned(self) -> None:
        """Take parameters that were put in the place of the layers'."""


class Part(nn.Module):
    """A module of a sliced model that holds others; what it was read with is not replaced."""

    @property
    def home(self) -> Home | None:
        """What knows the attributes of the user's module, once the model is made."""
        home: Home | None = vars(self).get("_home")
        return home

    @property
    def _is_open(self) -> bool:
        """Whether parts and tensors may be put here: the model is made, or a state is loaded."""
        return self.home is None or vars(self).get("_loading", False)

    def settle(self, home: Home, path: str) -> None:
        """Refuse, from now on, what would not have the effect that it has on the user's module."""
        vars(self).update(_home=home, _path=path)

    def __setattr__(self, name: str, value: object) -> None:
        if self._is_open or name in _TORCHS:
            super().__setattr__(name, value)  # type: ignore[arg-type]
        elif name in self._buffers and isinstance(value, Tensor):
            self._check_buffer(name, value)
            super().__setattr__(name, value)
        elif isinstance(value, nn.Module | nn.Parameter) or self._holds(name):
            raise AgreedError(self._refusal(name, f"replaced by a {type(value).__name__}"))
        else:
            assert self.home is not None
            self.home.set(self._path, name, value)
            vars(self)[name] = value

    def __delattr__(self, name: str) -> None:
        if self.home is not None and self._holds(name):
            raise AgreedError(self._refusal(name, "removed"))
        super().__delattr__(name)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            home = self.home
            if home is None or name.startswith("__"):
                raise
        return home.get(self._path, name)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        vars(self)["_loading"] = True  # torch sets tensors that are assigned as attributes
        try:
            super()._load_from_state_dict(*args, **kwargs)
        finally:
            vars(self)["_loading"] = False

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # as to() does: parameters may be new
        if self.home is not None:
            self.home.assigned()
        return self

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a part while the model is made; later, refuse it."""
        self._check_new(name, module)
        super().add_module(name, module)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter while the model is made; later, refuse it."""
        self._check_new(name, param)
        super().register_parameter(name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a buffer while the model is made; later, refuse it."""
        self._check_new(name, tensor)
        super().register_buffer(name, tensor, persistent)

    def _check_new(self, name: str, value: object) -> None:
        if not self._is_open:
            raise AgreedError(self._refusal(name, f"set to a {type(value).__name__}"))

    def _check_buffer(self, name: str, value: Tensor) -> None:
        old = self._buffers[name]
        if old is None or (old.shape, old.dtype) != (value.shape, value.dtype):
            shape = "None" if old is None else f"{tuple(old.shape)} {old.dtype}"
            raise AgreedError(
                f"buffer {self._named(name)} is {shape} and cannot be set to "
                f"{tuple(value.shape)} {value.dtype}: give one of its shape and dtype"
            )

    def _holds(self, name: str) -> bool:
        return name in self._modules or name in self._parameters or name in self._buffers

    def _named(self, name: str) -> str:
        return repr(f"{self._path}.{name}".lstrip("."))

    def _refusal(self, name: str, done: str) -> str:
        return (
            f"{self._named(name)} of a sliced model cannot be {done}: each rank holds a share, "
            "planned for the module as it was: change the module, and slice it then"
        )


class Block(Part):
    """A part of the user's module that holds others, at its place in the sliced model."""

    def __init__(self, kind: type[nn.Module]) -> None:
        """
        Args:
            kind: the class of the user's part.
        """
        super().__init__()
        vars(self)["_kind"] = kind

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        kind: type = vars(self).get("_kind", Block)
        return kind

    def forward(self, *args: object, **kwargs: object) -> None:
        """Refuse to be called: the model runs the layers inside.

        Raises:
            AgreedError: always.
        """
        raise AgreedError(
            f"{vars(self).get('_path', '')!r} of a sliced model cannot be called by itself: its "
            "layers hold shares and run in the model's own order. Call the model, and look at the "
            "block's output in a forward hook"
        )


class BlockSequential(Block, nn.Sequential):
    """A block that can be indexed as an ``nn.Sequential``."""

    forward = Block.forward

    def __getitem__(self, index: Any) -> Any:
        """Return a layer by its number.

        Raises:
            AgreedError: for a slice, which would be a module that can be called.
        """
        if isinstance(index, slice):
            self.forward()
        return super().__getitem__(index)


class BlockList(Block, nn.ModuleList):
    """A block that can be indexed as an ``nn.ModuleList``."""


class BlockDict(Block, nn.ModuleDict):
    """A block that can be indexed as an ``nn.ModuleDict``."""


def block_of(part: nn.Module) -> Block:
    """Return an empty block in the place of the user's *part*."""
    kinds = {nn.Sequential: BlockSequential, nn.ModuleList: BlockList, nn.ModuleDict: BlockDict}
    made = next((own for kind, own in kinds.items() if isinstance(part, kind)), Block)
    return made(type(part))
