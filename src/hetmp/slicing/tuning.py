"""How a sliced model does its work: choices that change speed and memory."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """The same on every rank; may be changed between steps.

    Attributes:
        shared_memory: ranks of one host exchange through memory that they share. Where they
            cannot (several hosts, no room), by MPI's collectives.
        overlap: a layer's parameter gradients are computed while its input's gradient travels.
        channels_last: a convolution that is faster so gets each pixel's channels together.
        regather: a layer's gathered input is not kept for the backward pass, but gathered again
            there: less memory, one exchange more.
        rounded: float32 activations and their gradients travel between layers as bfloat16, half
            the bytes. The one choice that changes results: every exchange rounds to 8 bits.
    """

    shared_memory: bool = True
    overlap: bool = True
    channels_last: bool = True
    regather: bool = False
    rounded: bool = False


PLAIN = Tuning(shared_memory=False, overlap=False, channels_last=False)
"""Nothing but collectives on packed copies, to measure the others against."""
