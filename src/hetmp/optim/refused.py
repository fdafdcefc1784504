"""Optimizers that are silently wrong on slices, by the name of their class, and what to do."""

_MATRIX = "adam, adamw or hetmp's lamb"
_ADAPTIVE = "adamw with a learning rate of your choice"


def _because(names: str, reason: str, remedy: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), f"{reason}; use {remedy}")


REFUSED: dict[str, str] = {
    **_because(
        "Adafactor",
        "it keeps the means of a tensor's rows and columns, and its norm, which a slice has not",
        "adamw or adam",
    ),
    **_because(
        "Muon",
        "it makes a whole matrix orthogonal, and a slice of the result is not that of the slice",
        _MATRIX,
    ),
    **_because(
        "Shampoo DistributedShampoo SOAP KFAC KFACPreconditioner EKFAC PSGD Kron CASPR",
        "it preconditions a whole matrix, and a slice of the result is not that of the slice",
        _MATRIX,
    ),
    **_because(
        "GaLoreAdamW GaLoreAdamW8bit GaLoreAdafactor APOLLOAdamW CAME SM3",
        "it keeps sums over rows and columns, or projections, of a whole matrix",
        "adamw or adam",
    ),
    **_because(
        "LBFGS FullBatchLBFGS",
        "its line search takes products over all parameters, and a rank has only its slices",
        "sgd with momentum, or adam",
    ),
    **_because(
        "SparseAdam",
        "it takes sparse gradients, which sliced layers do not have",
        "adam",
    ),
    **_because(
        "Lars LARS LARC LARSSGD",
        "it divides norms of whole tensors, and a rank sees those of its slices",
        "hetmp.optim.LARS, which measures whole tensors",
    ),
    **_because(
        "Lamb LAMB FusedLAMB FusedMixedPrecisionLamb DistributedFusedLAMB NVLAMB",
        "it divides norms of whole tensors, and a rank sees those of its slices",
        "hetmp.optim.LAMB, which measures whole tensors",
    ),
    **_because(
        "NovoGrad FusedNovoGrad NvNovoGrad Fromage",
        "it divides by norms of whole tensors, and a rank sees those of its slices",
        "hetmp's lars or lamb",
    ),
    **_because(
        "AdamP SGDP",
        "it compares norms and angles of whole tensors, and a rank sees those of its slices",
        "adamw, or sgd with momentum",
    ),
    **_because(
        "Prodigy DAdaptAdam DAdaptSGD DAdaptAdaGrad DAdaptLion DAdaptAdan DoG LDoG",
        "it finds its step from sums over all parameters, and a rank sums its slices only",
        _ADAPTIVE,
    ),
    **_because(
        "SAM ASAM GSAM WSAM",
        "it climbs along the gradient over the norm of all, and a rank sees that of its slices",
        "sgd with momentum, or adamw",
    ),
    **_because(
        "Ranger Ranger21 Adam_mini AdamMini",
        "it takes means over a tensor, and a rank sees those of its slices",
        "adamw or adam",
    ),
}
"""Class name -> reason and remedy. hetmp's own LARS and LAMB are other classes of these names."""
