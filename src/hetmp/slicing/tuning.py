"""How a sliced model does its work: choices that change speed and memory."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """Choices that must be the same on every rank. All but ``wire`` may change between steps.

    Attributes:
        shared_memory: ranks of one host exchange through memory that they share. Where they
            cannot (several hosts, no room), they use MPI's collectives.
        overlap: a layer's parameter gradients are computed while its input's gradient travels.
        channels_last: convolutions run as channels_last where that is faster.
        regather: a layer's gathered input is not kept for the backward pass, but gathered again
            there: less memory, one more exchange. For layers of which the plan does not say what
            is kept.
        rounded: float32 activations and their gradients travel between layers as bfloat16, half
            the bytes. Every exchange rounds to 8 bits.
        wire: a dtype by name, such as ``float32``, in which all floating-point values travel;
            they arrive in their own dtype. Needed where ranks compute in different dtypes, as
            under different autocasts.

    ``rounded`` and ``wire`` are the choices that change results.
    """

    shared_memory: bool = True
    overlap: bool = True
    channels_last: bool = True
    regather: bool = False
    rounded: bool = False
    wire: str | None = None


PLAIN = Tuning(shared_memory=False, overlap=False, channels_last=False)
"""Only MPI collectives on packed copies: the baseline for measurements."""
