"""Measuring the devices and the links between them: ``profile_model`` -> ``Profile``."""

from hetmp.profiling.measure import GRID, Budget
from hetmp.profiling.profile import (
    OPTIMIZER,
    THOUSANDTHS,
    DeviceProfile,
    LinkTimes,
    Profile,
    WorkTimes,
)
from hetmp.profiling.run import device_title, profile_model
from hetmp.profiling.work import Kind, step_work

__all__ = [
    "GRID",
    "OPTIMIZER",
    "THOUSANDTHS",
    "Budget",
    "DeviceProfile",
    "Kind",
    "LinkTimes",
    "Profile",
    "WorkTimes",
    "device_title",
    "profile_model",
    "step_work",
]
