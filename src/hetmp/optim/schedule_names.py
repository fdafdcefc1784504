"""The names of the learning rate schedules: one list for settings, help texts and formulas."""

SCHEDULES = (
    "constant", "cosine", "linear", "polynomial", "exponential", "step", "milestones", "onecycle",
)  # fmt: skip
"""In the order in which they are listed to people."""
