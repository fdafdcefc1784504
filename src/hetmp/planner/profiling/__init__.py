"""Measure the devices and the links between them: ``profile_model`` -> ``Profile``.

``profile_by_kind`` reuses the devices' times that earlier jobs stored.
"""

from hetmp.planner.profiling.by_node_kind import keep_kinds, profile_by_kind
from hetmp.planner.profiling.library import Library, Task
from hetmp.planner.profiling.links import TURN, link_name
from hetmp.planner.profiling.measure import GRID, Budget
from hetmp.planner.profiling.profile import (
    OPTIMIZER,
    THOUSANDTHS,
    DeviceProfile,
    LinkTimes,
    Profile,
    WorkTimes,
)
from hetmp.planner.profiling.profile_model import device_title, profile_links, profile_model
from hetmp.planner.profiling.work import Kind, batch_everywhere, step_work

__all__ = [
    "GRID",
    "OPTIMIZER",
    "THOUSANDTHS",
    "TURN",
    "Budget",
    "DeviceProfile",
    "Kind",
    "Library",
    "LinkTimes",
    "Profile",
    "Task",
    "WorkTimes",
    "batch_everywhere",
    "device_title",
    "keep_kinds",
    "link_name",
    "profile_by_kind",
    "profile_links",
    "profile_model",
    "step_work",
]
