"""Which parts of a sliced model have hooks, and which hooks they can have.

torch keeps a module's hooks in four dicts. Here these refuse what cannot be done, and show torch
only the hooks whose turn it is: those that see whole values, or those that see a rank's slice.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from hetmp.core.errors import HetmpError
from hetmp.slicing.graph import HOOKS, ModelGraph, hooks_of, place

_BACKWARD = ("_backward_hooks", "_backward_pre_hooks")


class _LocalHook:
    """A hook that sees this rank's slice."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.hook(*args, **kwargs)


def local_hook(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a hook on a layer of a sliced model as one that sees this rank's slice.

    Without the mark hooks see whole values and whole gradients, on every rank. With it no exchange
    is added, and what the hook returns stands for this rank's slice alone.

    Args:
        hook: for any of torch's ways to register a hook on a layer: forward, forward-pre, full
            backward, full backward-pre. It is not for a block, which has no slice of its own.

    Returns:
        What to register.
    """
    return _LocalHook(hook)


class _Hooks(OrderedDict[int, Any]):
    """The hooks of one kind on one part, by torch's number for each.

    Attributes:
        no_whole, no_local: why the part takes no hooks that see whole values, or slices; None if it
            does.
        local_now: which hooks torch sees: local ones, others, or all if None.
        taken: the hooks that the unsliced module had -> the dicts that they are in there, from
            which their handles remove them.
    """

    no_whole: str | None = None
    no_local: str | None = None
    local_now: bool | None = None

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[int, Mapping[int, Any]] = {}

    def __setitem__(self, number: int, hook: Any) -> None:
        self._check(hook)
        super().__setitem__(number, hook)

    def items(self) -> Any:
        """Return the hooks that torch sees now, with their numbers."""
        self._drop_removed()
        return super().items() if self.local_now is None else self._shown()

    def values(self) -> Any:
        """Return the hooks that torch sees now."""
        return [hook for _, hook in self.items()]

    @property
    def has_whole(self) -> bool:
        """Whether there are hooks that see whole values."""
        self._drop_removed()
        return any(not isinstance(hook, _LocalHook) for hook in super().values())

    def take(self, number: int, hook: Any, origin: Mapping[int, Any]) -> None:
        """Add a hook that the unsliced module has in *origin*."""
        self[number] = hook
        self.taken[number] = origin

    def check(self) -> None:
        """Refuse the hooks that the part can no longer have.

        Raises:
            HetmpError: there is one.
        """
        self._drop_removed()
        for hook in super().values():
            self._check(hook)

    def _check(self, hook: Any) -> None:
        reason = self.no_local if isinstance(hook, _LocalHook) else self.no_whole
        if reason is not None:
            raise HetmpError(reason)

    def _shown(self) -> list[tuple[int, Any]]:
        return [
            (number, hook)
            for number, hook in super().items()
            if isinstance(hook, _LocalHook) is self.local_now
        ]

    def _drop_removed(self) -> None:
        for number, origin in list(self.taken.items()):
            if number not in origin:
                del self.taken[number]
                self.pop(number, None)


@contextmanager
def shown(part: nn.Module, *, local: bool) -> Iterator[None]:
    """Let torch see only the hooks of *part* that see slices (*local*), or only the others."""
    kinds = [hooks for kind in HOOKS if isinstance(hooks := vars(part)[kind], _Hooks)]
    before = [hooks.local_now for hooks in kinds]
    for hooks in kinds:
        hooks.local_now = local
    try:
        yield
    finally:
        for hooks, now in zip(kinds, before, strict=True):
            hooks.local_now = now


class HookedParts:
    """The parts of a sliced model that may have hooks.

    Args:
        model: with its layers.
        graph: what was read of the module.
    """

    def __init__(self, model: nn.Module, graph: ModelGraph) -> None:
        self._graph = graph
        self._places: list[tuple[dict[str, Any], str, str]] = []
        for path, part in model.named_modules():
            if path == "hetmp" or path.startswith("hetmp."):
                continue
            self._install(path, part)
            if path:
                above, _, name = path.rpartition(".")
                self._places.append((model.get_submodule(above)._modules, name, path))

    def take(self, graph: ModelGraph) -> None:
        """Ask *graph* from now on which hooks the parts can have: the module was read again."""
        self._graph = graph
        for children, name, path in self._places:
            part = children.get(name)
            if part is None:
                continue
            for kind in HOOKS:
                hooks = vars(part)[kind]
                if type(hooks) is _Hooks:
                    self._limit(hooks, kind, path, part)

    def now(self) -> tuple[str, ...]:
        """Return the paths of the parts with hooks that see whole values, sorted. Not collective.

        Raises:
            HetmpError: a part has hooks that it cannot have: they came past torch's way to register
                them, or the module was read again since.
        """
        hooked = []
        for children, name, path in self._places:
            part = children.get(name)
            if part is None:
                continue
            own = part.__dict__
            if (
                own["_forward_hooks"]
                or own["_forward_pre_hooks"]
                or own["_backward_hooks"]
                or own["_backward_pre_hooks"]
            ):
                self._install(path, part)  # whoever replaces torch's dicts loses ours
                for kind in HOOKS:
                    own[kind].check()
                if any(own[kind].has_whole for kind in HOOKS):
                    hooked.append(path)
        return tuple(sorted(hooked))

    def share(self, part: nn.Module, other: nn.Module) -> None:
        """Give *other*, which runs where *part* runs again, the hooks of *part*."""
        for kind in HOOKS:
            for name in (kind, f"{kind}_with_kwargs", f"{kind}_always_called"):
                if name in vars(part):
                    vars(other)[name] = vars(part)[name]
        other._is_full_backward_hook = True  # the only ones that there are

    def take_over(self, module: nn.Module, model: nn.Module) -> None:
        """Register the hooks of *module*, which *model* was made of.

        Raises:
            HetmpError: a part cannot have a hook that it has there.
        """
        for path, origin in module.named_modules():
            for kind, hooks in hooks_of(origin).items():
                if not hooks:
                    continue
                part = model.get_submodule(path)
                for number, hook in hooks.items():
                    vars(part)[kind].take(number, hook, vars(origin)[kind])
                    for flag in (f"{kind}_with_kwargs", f"{kind}_always_called"):
                        if number in vars(origin).get(flag, ()):
                            vars(part)[flag][number] = True
                if kind == "_backward_hooks":
                    part._is_full_backward_hook = True

    def _install(self, path: str, part: nn.Module) -> None:
        """Put dicts that refuse into the place of torch's own in *part*."""
        if all(type(vars(part)[kind]) is _Hooks for kind in HOOKS):
            return
        for kind in HOOKS:
            own = vars(part)[kind]
            if type(own) is _Hooks:
                continue
            hooks = _Hooks()
            self._limit(hooks, kind, path, part)
            for number, hook in own.items():
                hooks[number] = hook
            vars(part)[kind] = hooks
        vars(part)["register_backward_hook"] = _refuse_old

    def _limit(self, hooks: _Hooks, kind: str, path: str, part: nn.Module) -> None:
        """Note why a part takes no *hooks* that see whole values, and none that see slices."""
        title = place(path, self._whole(path, part)) if path else "the model"
        whole = self._graph.why_no_hook(path, backward=kind in _BACKWARD) if path else None
        local = None
        if not path or not self._graph.is_layer(path):
            local = "it has no slice of its own: put hetmp.local_hook on the layers inside"
        hooks.no_whole = f"no hook can be put on {title}: {whole}" if whole else None
        hooks.no_local = f"no local hook can be put on {title}: {local}" if local else None

    def _whole(self, path: str, part: nn.Module) -> nn.Module:
        """Return the user's module at *path*, or *part* where hetmp alone has one."""
        try:
            return self._graph.skeleton.get_submodule(path)
        except AttributeError:
            return part


def _refuse_old(*_: object, **__: object) -> None:
    raise HetmpError(
        "register_backward_hook sees the gradients of the last operation only, which differ "
        "on a sliced model: use register_full_backward_hook"
    )
