"""How hetmp itself computes on the tensors that it hands to the user: as plain ones."""

from contextlib import nullcontext

import torch

plain_tensors = torch._C.DisableTorchFunctionSubclass
"""A context: inside, tensors of a subclass are plain tensors to torch, at the price of these."""

users_tensors = getattr(torch._C, "_EnableTorchFunction", nullcontext)
"""A context for the user's code inside of ``plain_tensors``: tensors are what they are again."""
