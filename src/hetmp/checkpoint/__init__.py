"""Trained networks as HDF5 files."""

from hetmp.checkpoint.weights import write_weights

__all__ = ["write_weights"]
