"""Optimizers that are silently wrong on slices: named, and refused when they step."""

import weakref
from functools import cache
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from hetmp.cluster import AgreedError
from hetmp.core.state import FULL
from hetmp.slicing.model import SlicedModel

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

_guarded: "weakref.WeakSet[SlicedModel]" = weakref.WeakSet()
"""The models that slice_model made and that are still there; copies of them are not."""


def reason_against(kind: type) -> str | None:
    """Return why an optimizer of class *kind* is wrong on slices, by its or a base's name.

    None where nothing speaks against it, or where the class says ``measures_whole_tensors``.
    """
    if getattr(kind, "measures_whole_tensors", False):
        return None
    return next((REFUSED[c.__name__] for c in kind.__mro__ if c.__name__ in REFUSED), None)


def refuse(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Refuse a step of *optimizer* that would be wrong: torch calls it before every step.

    Where the name of the class says nothing against it, it costs a look at a few names. *args* and
    *kwargs*, which torch gives, are those of the step; they are not looked at.

    Raises:
        HetmpError: on every rank, before anything is changed, where the optimizer has a parameter
            that is cut over several ranks. All ranks run the same loop, so all raise.
    """
    reason = reason_against(type(optimizer))
    if reason is None:
        return
    cut = _cut_parameters()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in cut:
                raise AgreedError(
                    f"{type(optimizer).__name__} is wrong on the slices of {cut[id(parameter)]!r}: "
                    f"{reason}"
                )


def guard(model: SlicedModel) -> None:
    """Refuse, from now on, every optimizer that would be wrong on the slices of *model*."""
    _guarded.add(model)
    _watch()


@cache
def _watch() -> None:
    register_optimizer_step_pre_hook(refuse)


def _cut_parameters() -> dict[int, str]:
    """id -> name of every parameter of guarded models that is cut over two ranks or more."""
    return {
        id(parameter): name
        for model in list(_guarded)
        if model.hetmp.group.size > 1
        for name, parameter in model.named_parameters()
        if model.hetmp.table[name].state != FULL
    }
