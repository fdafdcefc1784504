"""Checkpoints: HDF5 files that know nothing of ranks. docs/checkpoint-format.md specifies them."""

import lazy_loader

# What inspects a file needs no torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
