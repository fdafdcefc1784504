"""Optimizers on slices: what is global in them, by name, over a run, and which are refused."""

import lazy_loader

# The names of schedules are listed on login nodes, where torch is slow to come.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
