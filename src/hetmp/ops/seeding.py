"""Random numbers of what every rank computes whole: the same on all ranks.

Every operation draws from generators that are seeded with the key of the forward pass and the
operation's name. From one seed, torch draws other numbers on a CPU than on a GPU, on GPUs of two
kinds, and for bfloat16 than for float32. Where the ranks are unlike in any of these, all is drawn
on the CPU in float32, in row-major order, and copied to where it is needed.
"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hetmp.ops.cpu_draws import DrawingOnCpu
from hetmp.ops.generators import generator_states, pythons_kept, seed_pythons


class Seeds:
    """The random numbers of one forward pass.

    Args:
        key: the same on all ranks.
        on_cpu: whether all is drawn on the CPU, because the ranks are unlike.
        before: state of torch's CPU generator before the key was drawn, to go back to where no
            operation draws; None where the key counts as drawn.
    """

    def __init__(self, key: int, on_cpu: bool = False, before: Tensor | None = None) -> None:
        self.key, self._on_cpu, self._before = key, on_cpu, before
        self._drew = False

    @contextmanager
    def seeded(
        self, name: str, device: torch.device, callee: Callable[..., object], own: bool
    ) -> Iterator[None]:
        """Seed the generators with (key, *name*) inside, and restore them afterwards.

        Args:
            name: of the step.
            device: of its operands.
            callee: the layer or function that is called inside.
            own: whether that is a user's own code, which may draw from Python's and NumPy's
                generators, too.
        """
        gpus = [device] if device.type == "cuda" else []
        seed = zlib.crc32(f"{self.key} {name}".encode())
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(gpus))
            torch.manual_seed(seed)
            if own:
                stack.enter_context(pythons_kept())
                seed_pythons(seed)
            if self._on_cpu:
                _draw_on_cpu(stack, callee)
            watched = self._before is not None and not self._drew
            fresh = generator_states(gpus, pythons=own) if watched else None
            yield
            if watched:
                self._drew = fresh != generator_states(gpus, pythons=own)

    def close(self) -> None:
        """Take the key back if nothing was drawn with it."""
        if self._before is not None and not self._drew:
            torch.set_rng_state(self._before)


def _draw_on_cpu(stack: ExitStack, callee: Callable[..., object]) -> None:
    """Draw everything on the CPU until *stack* ends."""
    # Fused attention and cuDNN's recurrent layers draw inside of their kernels.
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    parts = callee.modules() if isinstance(callee, nn.Module) else ()
    if any(isinstance(part, nn.RNNBase) and part.dropout > 0 for part in parts):
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
    stack.enter_context(DrawingOnCpu())
