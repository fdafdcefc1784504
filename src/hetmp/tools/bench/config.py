"""The settings of a bench, and the variants that follow from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hetmp.cluster.slowdown import check_slowdown
from hetmp.core.errors import HetmpError
from hetmp.core.partition import checked_weights
from hetmp.core.scheme_choice import is_word
from hetmp.core.suggestions import near_path, unknown_name
from hetmp.slicing import PLAIN, Tuning

SLICED = ("sliced", "sliced again", "floor", "plain exchange")
TUNINGS = {
    "sliced": Tuning(),
    "sliced again": Tuning(),
    "floor": Tuning(),
    "plain exchange": PLAIN,
    "no shared memory": Tuning(shared_memory=False),
    "no overlap": Tuning(overlap=False),
    "no channels_last": Tuning(channels_last=False),
    "regather": Tuning(regather=True),
    "rounded": Tuning(rounded=True),
}
"""The tuning of the sliced model, by variant."""
ONE_PROCESS = ("one process, NCHW", "one process, channels_last")
DATA_PARALLEL = ("data parallel", "data parallel, weighted")
VARIANTS = (*TUNINGS, *ONE_PROCESS, *DATA_PARALLEL)
CUTS = ("filters", "batch", "batch:K", "FILE of a plan or of schemes")
"""The further variants, for messages: the sliced model cut as such a name says."""


@dataclass(frozen=True)
class BenchConfig:
    """The settings of a bench.

    Attributes:
        model, input_shape, classes: the network, and the images that it is built for.
        weights: the ranks' relative speeds.
        batch_size: images per step, of all ranks together.
        repeats: measured turns of every variant.
        slowdown: factor by which each rank is slowed on purpose, a test aid.
        only: the variants to measure; None for the usual ones. A name that is none of
            ``VARIANTS`` is a cut: a word of schemes, or a file of schemes or of a plan.
        data_parallel: whether to measure data parallelism too.
        schemes: of the sliced network's layers, in all variants but the cuts: see
            ``slice_model``.
        seconds: after which no turn begins, preparation and warm-up included; None for no limit.
    """

    model: str
    input_shape: tuple[int, ...]
    classes: int
    weights: tuple[float, ...]
    batch_size: int
    repeats: int
    slowdown: tuple[float, ...] | None = None
    only: tuple[str, ...] | None = None
    data_parallel: bool = False
    schemes: str | Mapping[str, str] = "filters"
    seconds: float | None = None

    def check(self, ranks: int) -> None:
        """Refuse settings that cannot be measured.

        Raises:
            HetmpError: the first wrong value.
        """
        for name in ("batch_size", "repeats"):
            if getattr(self, name) < 1:
                raise HetmpError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds > 0):
            raise HetmpError(f"seconds must be above 0, got {self.seconds:g}")
        checked_weights(self.weights, ranks)
        if self.slowdown is not None:
            check_slowdown(self.slowdown, ranks)
        for name in self.only or ():
            if name not in VARIANTS:
                _check_cut(name)
            if self.slowdown is not None and name in ONE_PROCESS:
                raise HetmpError(
                    f"{name!r} cannot be measured among slowed ranks: it would run at full speed. "
                    "Choose other variants, or no slowdown"
                )

    def variants(self) -> list[str]:
        """Return the requested variants, in the order of the table."""
        wanted = self.only or (*SLICED, *(ONE_PROCESS if self.slowdown is None else ()))
        if self.data_parallel:
            wanted += DATA_PARALLEL
        known = [name for name in VARIANTS if name in wanted]
        tuned = [name for name in known if name in TUNINGS]
        return [*tuned, *self.cuts(), *known[len(tuned) :]]

    def cuts(self) -> list[str]:
        """Return the requested variants that are cuts, in the order in which they were named."""
        return [name for name in dict.fromkeys(self.only or ()) if name not in VARIANTS]

    def base(self) -> str | None:
        """Return the variant that the others are compared with.

        It is the sliced model, else the first cut; None where neither is measured.
        """
        return next((name for name in ("sliced", *self.cuts()) if name in self.variants()), None)


def _check_cut(name: str) -> None:
    """Refuse a name that is neither a word of schemes nor a file."""
    if is_word(name) or Path(name).is_file():
        return
    if Path(name).suffix or Path(name).name != name:
        raise HetmpError(f"there is no file {name} of a plan or of schemes{near_path(name)}")
    raise unknown_name("variant", name, (*VARIANTS, *CUTS))


def split_names(text: str) -> tuple[str, ...]:
    """Split variants at commas, although some have a comma in their name.

    >>> split_names("sliced, one process,NCHW,floor")
    ('sliced', 'one process, NCHW', 'floor')
    """
    parts, names = [part.strip() for part in text.split(",")], []
    while parts:
        count = 2 if ", ".join(parts[:2]) in VARIANTS else 1
        names.append(", ".join(parts[:count]))
        del parts[:count]
    return tuple(names)
