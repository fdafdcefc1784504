"""How hetmp itself computes on the tensors that it hands to the user: as plain ones."""

import torch

plain_tensors = torch._C.DisableTorchFunctionSubclass
"""A context: inside, tensors of a subclass are plain tensors to torch, at the price of these."""
