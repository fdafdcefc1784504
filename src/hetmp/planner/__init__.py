"""Choosing a plan from measured times: ``make_plan``."""

from hetmp.planner.planner import Planned, PlanOptions, make_plan, summary
from hetmp.planner.predict import LayerPrediction, Prediction, predict
from hetmp.planner.tables import Links, Tables

__all__ = [
    "LayerPrediction",
    "Links",
    "PlanOptions",
    "Planned",
    "Prediction",
    "Tables",
    "make_plan",
    "predict",
    "summary",
]
