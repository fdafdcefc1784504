"""Hooks on the parts of a sliced model, which see whole values and whole gradients.

``registration`` keeps them and refuses what cannot be done, ``program`` makes the steps of a model
with hooks, ``calls`` runs them.
"""

from hetmp.slicing.hooks.calls import run_hooked
from hetmp.slicing.hooks.program import schedule_hooked
from hetmp.slicing.hooks.registration import HookedParts, local_hook, shown

__all__ = ["HookedParts", "local_hook", "run_hooked", "schedule_hooked", "shown"]
