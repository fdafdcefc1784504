"""Optimizers on slices: what is global in them, by name, over a run, and which are refused."""

from hetmp.optim import watching as watching  # it refuses from now on
from hetmp.optim.averages import Averages
from hetmp.optim.clipping import clip_grad_norm_, grad_norm
from hetmp.optim.names import OPTIMIZERS, make_optimizer
from hetmp.optim.rates import SCHEDULES, make_schedule, rate
from hetmp.optim.refused import REFUSED
from hetmp.optim.scaler import GradScaler
from hetmp.optim.trust import LAMB, LARS

__all__ = [
    "LAMB",
    "LARS",
    "OPTIMIZERS",
    "REFUSED",
    "SCHEDULES",
    "Averages",
    "GradScaler",
    "clip_grad_norm_",
    "grad_norm",
    "make_optimizer",
    "make_schedule",
    "rate",
]
