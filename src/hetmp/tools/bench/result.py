"""The result of a bench, and the comparison of its variants."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hetmp.core.text import bytes_text
from hetmp.tools.bench.config import ONE_PROCESS, BenchConfig

RESAMPLES = 1000

ENOUGH = 6
"""Least turns for an interval: 5 turns all lie on one side of the true median in 6 % of cases."""

NAMES = 24
"""Least columns for the names of exchanges in the summary."""


@dataclass(frozen=True)
class BenchResult:
    """The result of a bench, the same on every rank.

    Attributes:
        seconds: by variant, the time of the slowest rank in every turn.
        exchange: by variant that exchanges, each rank's median seconds of exchange and packing
            in a step, including waiting for slower ranks.
        threads: threads of one rank, and of the one process.
        left_out: requested variants that could not run, with the reason.
        received: by cut of the network, bytes that each rank receives in a step.
    """

    config: BenchConfig
    seconds: dict[str, list[float]]
    exchange: dict[str, list[float]]
    threads: tuple[int, int]
    left_out: dict[str, str] = field(default_factory=dict)
    received: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def turns(self) -> int:
        """Return the number of turns that were timed."""
        return min(map(len, self.seconds.values()))

    @property
    def base(self) -> str | None:
        """Return the variant that others are compared with; None if there is nothing to compare."""
        base = self.config.base()
        return base if base in self.seconds and len(self.seconds) > 1 else None

    def median(self, variant: str) -> float:
        """Return the median seconds of a step of *variant*."""
        return statistics.median(self.seconds[variant])

    def ratio(self, variant: str, of: str = "sliced") -> float:
        """Return the median time of *of* as a multiple of *variant*'s."""
        return self.median(of) / self.median(variant)

    def interval(self, variant: str, of: str = "sliced") -> tuple[float, float]:
        """Return the 95 % confidence interval of ``ratio``: a bootstrap over paired turns."""
        pair = np.array([self.seconds[of], self.seconds[variant]])  # (2, turns)
        turns = pair.shape[1]
        drawn = np.random.default_rng(0).integers(turns, size=(RESAMPLES, turns))
        above, below = np.median(pair[:, drawn], axis=2)
        low, high = np.percentile(above / below, [2.5, 97.5])
        return float(low), float(high)

    def fastest_process(self) -> str | None:
        """Return the faster of the variants in one process; None if none was measured."""
        return min((n for n in ONE_PROCESS if n in self.seconds), key=self.median, default=None)


def rows(result: BenchResult) -> Sequence[tuple[str, str, str, str, str]]:
    """Return rows of (variant, milliseconds of a step, quartiles, base / variant, 95 %)."""
    table, base = [], result.base
    for name, seconds in result.seconds.items():
        milliseconds = 1000 * np.array(seconds)
        low, high = np.percentile(milliseconds, [25, 75])
        ratio = interval = ""
        if base is not None and name != base:
            ratio, interval = f"{result.ratio(name, base):.3f}", _interval(result, name, base)
        median = f"{np.median(milliseconds):.1f}"
        table.append((name, median, f"{low:.1f}–{high:.1f}", ratio, interval))
    return table


def summary(result: BenchResult) -> list[str]:
    """Return the lines after the table: turns, noise, limit, exchanges, missing variants."""
    lines, base = [], result.base
    if result.turns < result.config.repeats:
        lines.append(
            f"{result.turns} of {result.config.repeats} turns were timed: the time, "
            f"{result.config.seconds:g} s, was over"
        )
        if result.turns < ENOUGH:
            lines.append(f"intervals are shown from {ENOUGH} turns on")
    if base is not None:
        lines.append(f"{base} / this: above 1, this variant is faster than {base}")
    if {"sliced", "sliced again"} <= result.seconds.keys():
        lines.append("sliced again / sliced: " + _ratio(result, "sliced", "sliced again"))
    limit = result.fastest_process()
    if limit and base is not None:
        lines.append(f"{base} / the faster one process: {_ratio(result, limit, base)}, {limit}")
    exchange = result.exchange if len(result.config.weights) > 1 else {}
    received = {f"{name}: received a step": by for name, by in result.received.items() if any(by)}
    compared = {"sliced", "plain exchange"} <= exchange.keys()
    width = max(NAMES, *map(len, (*exchange, *received, "")))
    if exchange:
        lines.append("exchange, packing and waiting (the floor only waits), ms a step:")
        lines.append(f"  {'':<{width}}{'in all':>10}{'by rank':>10}")
    for name, seconds in exchange.items():
        lines.append(_line(name, [f"{1000 * s:.1f}" for s in (sum(seconds), *seconds)], width))
    if compared:
        ours, theirs = exchange["sliced"], exchange["plain exchange"]
        pairs = zip((sum(ours), *ours), (sum(theirs), *theirs), strict=True)
        ratios = [f"{a / b if b else math.nan:.3f}" for a, b in pairs]
        lines.append(_line("sliced / plain exchange", ratios, width))
    for name, sizes in received.items():
        lines.append(_line(name, [bytes_text(size) for size in (sum(sizes), *sizes)], width))
    lines += [f"left out: {name}: {why}" for name, why in result.left_out.items()]
    return lines


def _ratio(result: BenchResult, variant: str, of: str) -> str:
    interval = _interval(result, variant, of)
    return f"{result.ratio(variant, of):.3f}" + (f" ({interval})" if interval else "")


def _interval(result: BenchResult, variant: str, of: str) -> str:
    if len(result.seconds[variant]) < ENOUGH:
        return ""
    low, high = result.interval(variant, of)
    return f"{low:.3f}–{high:.3f}"


def _line(name: str, values: Sequence[str], width: int) -> str:
    return f"  {name:<{width}}" + " ".join(f"{value:>9}" for value in values)
