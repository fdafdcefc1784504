"""Optimizers on slices: what is global in them, by name, over a run, and which are refused."""

from hetmp.optim.averages import Averages
from hetmp.optim.by_name import OPTIMIZERS, make_optimizer
from hetmp.optim.clipping import clip_grad_norm_, grad_norm
from hetmp.optim.layerwise import LAMB, LARS
from hetmp.optim.scaler import GradScaler
from hetmp.optim.schedules import SCHEDULES, make_schedule, rate
from hetmp.slicing.optimizer_guard import REFUSED

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
