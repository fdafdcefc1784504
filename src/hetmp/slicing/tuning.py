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
            the bytes. Every exchange rounds to 8 bits.
        wire: a dtype by name, such as ``float32``, in which all that is floating travels, and
            arrives as what it was. Needed where ranks compute in unlike dtypes, as under an
            autocast of their own: what a rank rounds to, the others need not.

    ``rounded`` and ``wire`` are the choices that change results.
    """

    shared_memory: bool = True
    overlap: bool = True
    channels_last: bool = True
    regather: bool = False
    rounded: bool = False
    wire: str | None = None


PLAIN = Tuning(shared_memory=False, overlap=False, channels_last=False)
"""Nothing but collectives on packed copies, to measure the others against."""
