"""Hooks that a module has before it is sliced: its copies, which are only read, have none."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hetmp.core.errors import HetmpError
from hetmp.slicing.graph.parametrized import norms_of_old

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""The attributes in which torch keeps a module's hooks, by number."""


def hooks_of(part: nn.Module) -> dict[str, dict[int, Any]]:
    """Return the hooks of *part* that are not torch's own weight norm, by attribute and number."""
    norms = norms_of_old(part)
    return {
        kind: {n: hook for n, hook in getattr(part, kind).items() if hook not in norms}
        for kind in HOOKS
    }


def hooked_paths(module: nn.Module) -> tuple[str, ...]:
    """Return the paths of the parts of *module* that have hooks of the user's."""
    return tuple(path for path, part in module.named_modules() if any(hooks_of(part).values()))


def without_hooks(module: nn.Module) -> dict[int, object]:
    """Return what stands for the hooks in a copy of *module*, for ``copy.deepcopy``: none."""
    memo: dict[int, object] = {}
    for part in module.modules():
        norms = norms_of_old(part)
        for kind in HOOKS:
            hooks: Mapping[int, Any] = getattr(part, kind)
            if hooks:
                kept = ((number, hook) for number, hook in hooks.items() if hook in norms)
                memo[id(hooks)] = OrderedDict(kept)
    return memo


def check_hooks(module: nn.Module) -> None:
    """Refuse hooks that compute a part's parameters, and backward hooks of old.

    Raises:
        HetmpError: naming the part.
    """
    for path in hooked_paths(module):
        part = module.get_submodule(path)
        title = f"{path!r} ({type(part).__name__})"
        if part._backward_hooks and part._is_full_backward_hook is False:
            raise HetmpError(
                f"{title} cannot be sliced: it has a hook of register_backward_hook, which sees "
                "the gradients of the last operation only: use register_full_backward_hook"
            )
        computed = [
            name
            for name, value in vars(part).items()
            if isinstance(value, Tensor) and (name in ("weight", "bias") or not value.is_leaf)
        ]
        for hook in hooks_of(part)["_forward_pre_hooks"].values():
            if type(hook).__module__.startswith("torch.nn.utils") or computed:
                raise HetmpError(
                    f"{title} cannot be sliced: its hooks compute "
                    f"{getattr(hook, 'name', None) or (computed or ['a parameter'])[0]!r}, which "
                    "would not work on slices: remove them first, or use "
                    "torch.nn.utils.parametrize"
                )
