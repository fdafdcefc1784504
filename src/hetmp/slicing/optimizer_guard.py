"""Optimizers on slices: those that are wrong are refused when they step, others run undisturbed."""

import sys
import weakref
from functools import cache, partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from hetmp.cluster import AgreedError
from hetmp.exchange import any_pending, is_pending, plain_tensors
from hetmp.slicing.shares import CutParameter, CutTensor
from hetmp.slicing.step_shares import whole_of_steps

_MATRIX = "adam, adamw or hetmp's lamb"
_ADAPTIVE = "adamw with a learning rate of your choice"


def _because(names: str, reason: str, remedy: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), f"{reason}; use {remedy}")


REFUSED: dict[str, str] = {
    **_because(
        "Adafactor",
        "it needs row and column means and the norm of the whole tensor; a rank holds only a slice",
        "adamw or adam",
    ),
    **_because(
        "Muon",
        "it makes a whole matrix orthogonal, which differs from making each slice orthogonal",
        _MATRIX,
    ),
    **_because(
        "Shampoo DistributedShampoo SOAP KFAC KFACPreconditioner EKFAC PSGD Kron CASPR",
        "it preconditions a whole matrix, which differs from preconditioning each slice",
        _MATRIX,
    ),
    **_because(
        "GaLoreAdamW GaLoreAdamW8bit GaLoreAdafactor APOLLOAdamW CAME SM3",
        "it needs row and column sums, or projections, of a matrix; a rank holds only a slice",
        "adamw or adam",
    ),
    **_because(
        "LBFGS FullBatchLBFGS",
        "its line search needs products over all parameters; a rank holds only its slices",
        "sgd with momentum, or adam",
    ),
    **_because(
        "SparseAdam",
        "it needs sparse gradients, which sliced layers do not have",
        "adam",
    ),
    **_because(
        "Lars LARS LARC LARSSGD",
        "it divides norms of whole tensors; a rank sees only the norms of its slices",
        "hetmp.optim.LARS, which measures whole tensors",
    ),
    **_because(
        "Lamb LAMB FusedLAMB FusedMixedPrecisionLamb DistributedFusedLAMB NVLAMB",
        "it divides norms of whole tensors; a rank sees only the norms of its slices",
        "hetmp.optim.LAMB, which measures whole tensors",
    ),
    **_because(
        "NovoGrad FusedNovoGrad NvNovoGrad Fromage",
        "it divides by norms of whole tensors; a rank sees only the norms of its slices",
        "hetmp's lars or lamb",
    ),
    **_because(
        "AdamP SGDP",
        "it compares norms and angles of whole tensors; a rank sees only those of its slices",
        "adamw, or sgd with momentum",
    ),
    **_because(
        "Prodigy DAdaptAdam DAdaptSGD DAdaptAdaGrad DAdaptLion DAdaptAdan DoG LDoG",
        "it sets its step by sums over all parameters; a rank sums only its slices",
        _ADAPTIVE,
    ),
    **_because(
        "SAM ASAM GSAM WSAM",
        "it divides the gradient by the norm over all parameters; a rank sees only its slices",
        "sgd with momentum, or adamw",
    ),
    **_because(
        "Ranger Ranger21 Adam_mini AdamMini",
        "it needs means over whole tensors; a rank sees only the means of its slices",
        "adamw or adam",
    ),
}
"""Class name -> reason and remedy. hetmp's own LARS and LAMB are other classes of these names."""


def reason_against(kind: type) -> str | None:
    """Return why an optimizer of class *kind* is wrong on slices, by its or a base's name.

    None where nothing speaks against it, or where the class says ``measures_whole_tensors``.
    """
    if getattr(kind, "measures_whole_tensors", False):
        return None
    return next((REFUSED[c.__name__] for c in kind.__mro__ if c.__name__ in REFUSED), None)


_sliced: dict[int, tuple["weakref.ref[Tensor]", str]] = {}
"""id -> parameter and name, of modules that were sliced, as long as the parameter is there."""

_seen: "weakref.WeakSet[torch.optim.Optimizer]" = weakref.WeakSet()
"""Optimizers that have stepped."""

ELEMENTWISE = frozenset(
    getattr(torch.optim, name)
    for name in (
        *("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam"),
        *("RMSprop", "Adagrad", "Adadelta", "ASGD", "Rprop"),
    )
)
"""Optimizers of torch's that are right on slices: what they do need not be followed."""


def before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Refuse a step of *optimizer* that would be wrong: torch calls it before every step.

    Where the name of the class says nothing against it, it costs a look at a few names, and in the
    first step at the parameters. *args* and *kwargs*, which torch gives, are those of the step.

    Raises:
        AgreedError: on every rank, before anything is changed, where the optimizer has a parameter
            that is cut over several ranks, one whose gradient is not summed yet, or only
            parameters of a module that was sliced, without gradients. All ranks run the same loop,
            so all raise.
    """
    reason = reason_against(type(optimizer))
    if reason is not None:
        _refuse_on_slices(optimizer, reason)
    if any_pending():
        _refuse_summands(optimizer)
    if optimizer not in _seen:
        _refuse_of_original(optimizer)
        _seen.add(optimizer)


def _refuse_on_slices(optimizer: torch.optim.Optimizer, reason: str) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(parameter, CutParameter):
                raise AgreedError(
                    f"{type(optimizer).__name__} is wrong on the slices of "
                    f"{parameter.hetmp_share.origin.name!r}: {reason}"
                )


def _refuse_summands(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        if any(is_pending(whole_of_steps(parameter)) for parameter in group["params"]):
            raise AgreedError(
                f"{type(optimizer).__name__} would step on gradients that are not summed over the "
                "ranks: do the last backward pass before it outside of sum_later()"
            )


def _refuse_of_original(optimizer: torch.optim.Optimizer) -> None:
    held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    names = {key: name for key, (known, name) in _sliced.items() if known() is held.get(key, known)}
    if names and all(held[key].grad is None for key in names):  # else that module is trained, too
        name = next(names[key] for key in held if key in names)
        raise AgreedError(
            f"{type(optimizer).__name__} holds {name!r} of the module that was sliced, which "
            "has no gradient and trains nothing in the sliced model: make the optimizer from "
            "model.parameters(), after slice_model"
        )


def guard(module: nn.Module) -> None:
    """Refuse, from now on, every optimizer that would be wrong on the slices of a sliced model.

    So too one of the parameters of *module*, which was sliced, where these are not trained.
    """
    for name, parameter in module.named_parameters():
        _sliced[id(parameter)] = weakref.ref(parameter, partial(_forget, id(parameter))), name
    _watch()


def _forget(key: int, reference: object) -> None:
    _sliced.pop(key, None)


@cache
def _watch() -> None:
    register_optimizer_step_pre_hook(before_step)
    for kind in ELEMENTWISE:
        if "step" in vars(kind):  # else it has that of another
            _step_undisturbed(kind)
    # torch takes the quick ways (foreach, fused) for parameters of the classes in this list alone.
    quick = getattr(sys.modules[torch.optim.Optimizer.__module__], "_foreach_supported_types", None)
    if isinstance(quick, list):
        quick += [CutParameter, CutTensor]


def _step_undisturbed(kind: Any) -> None:
    """Let optimizers of class *kind* step on plain tensors, but for what their users add."""
    step = kind.step

    @wraps(step)
    def undisturbed(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        # A subclass, a closure and the hooks of users are followed.
        if type(self) not in ELEMENTWISE or args or kwargs or _has_hooks(self):
            return step(self, *args, **kwargs)
        with plain_tensors():
            return step(self)

    kind.step = undisturbed


def _has_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a step of *optimizer* calls hooks besides ``before_step``."""
    everyones = vars(sys.modules[torch.optim.Optimizer.__module__])
    own = vars(optimizer)
    return any(
        hook is not before_step
        for hooks in (
            everyones["_global_optimizer_pre_hooks"],
            everyones["_global_optimizer_post_hooks"],
            own.get("_optimizer_step_pre_hooks", {}),
            own.get("_optimizer_step_post_hooks", {}),
        )
        for hook in hooks.values()
    )
