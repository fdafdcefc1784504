"""Choose a plan from measured times: ``make_plan``."""

from hetmp.planner.link_model import Extent, LinkModel, Links
from hetmp.planner.planner import Planned, PlanOptions, make_plan, summary
from hetmp.planner.predict import LayerPrediction, Prediction, predict
from hetmp.planner.profiling import Budget, Profile, profile_model
from hetmp.planner.tables import Tables

__all__ = [
    "Budget",
    "Extent",
    "LayerPrediction",
    "LinkModel",
    "Links",
    "PlanOptions",
    "Planned",
    "Prediction",
    "Profile",
    "Tables",
    "make_plan",
    "predict",
    "profile_model",
    "summary",
]
