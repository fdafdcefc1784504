"""Measuring the devices and the links between them: ``profile_model`` -> ``Profile``.

Or, in part, taking them from what earlier jobs kept: ``profile_by_kind``.
"""

from hetmp.profiling.kinds import keep_kinds, profile_by_kind
from hetmp.profiling.library import Library, Task
from hetmp.profiling.measure import GRID, Budget
from hetmp.profiling.profile import (
    OPTIMIZER,
    THOUSANDTHS,
    DeviceProfile,
    LinkTimes,
    Profile,
    WorkTimes,
)
from hetmp.profiling.run import device_title, profile_links, profile_model
from hetmp.profiling.work import Kind, step_work

__all__ = [
    "GRID",
    "OPTIMIZER",
    "THOUSANDTHS",
    "Budget",
    "DeviceProfile",
    "Kind",
    "Library",
    "LinkTimes",
    "Profile",
    "Task",
    "WorkTimes",
    "device_title",
    "keep_kinds",
    "profile_by_kind",
    "profile_links",
    "profile_model",
    "step_work",
]
