"""Diagnose what limits a run, and advise what to try.

Each cause beyond its limit is found with its share of a step; the two largest are reported.
``docs/report.md`` explains the limits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import mean, median

from hetmp.tools.report.situation import Situation
from hetmp.tools.report.text import listed, percent, ranges, seconds_text, size_text

WAITING = 0.15
"""Mean share of a step that ranks may wait for each other before it is a cause."""

UNEVEN = 1.25
"""Ratio to the others' median compute time from which a rank is slow, or spare if inverse."""

EXCHANGE = 0.3
"""Share of a step that exchanges may take."""

READING = 0.1
"""Share of a step that reading images may take."""

SHORT_STEP = 0.01
"""Seconds; a shorter step is mostly fixed costs of operations and exchanges."""

COMPUTE = 0.75
"""Share of a step from which a run is bound by computing, if no other cause is found."""

PREDICTED = 1.25
"""Largest ratio between the measured and the predicted step, either way."""

SMALL_MESSAGE = 1 << 16
"""Bytes of an exchange, of all ranks; smaller ones take about as long as empty ones."""

LITTLE = 0.06
"""Share of the channels that hardly pays for a rank: so small a slice is inefficient."""

FEW = 10
"""Steps below which medians are unreliable."""

TOLD = 2
"""Most causes to report."""


@dataclass(frozen=True)
class Finding:
    """A cause.

    Attributes:
        cause: its short name.
        share: its share of the step, 0 to 1.
        figures: a sentence with the measured figures.
        advice: a sentence on what to try, with flags in backticks.
    """

    cause: str
    share: float
    figures: str
    advice: str

    @property
    def text(self) -> str:
        """Return both sentences."""
        return f"{self.figures} {self.advice}"


@dataclass(frozen=True)
class Diagnosis:
    """The causes that limit a run.

    Attributes:
        findings: the causes, the largest share of a step first; at least one.
        notes: caveats about the figures.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()


UNKNOWN = Diagnosis(
    (
        Finding(
            "unknown",
            0.0,
            "No step with times was recorded, so nothing can be said of what limits this run.",
            "Let it take some steps, 10 or more.",
        ),
    )
)


def diagnose(about: Situation | None) -> Diagnosis:
    """Find the causes that limit a run, with advice."""
    if about is None or not about.step > 0:
        return UNKNOWN
    found = [_reading(about), _exchange(about), _waiting(about), _short(about)]
    causes = sorted((one for one in found if one), key=lambda one: -one.share)
    return Diagnosis(tuple(causes[:TOLD]) or (_nothing_wrong(about),), _notes(about))


def _reading(about: Situation) -> Finding | None:
    share = about.read / about.step
    if share < READING:
        return None
    slowest = about.ranks[max(range(len(about.ranks)), key=lambda i: about.reading[i])]
    who = f"rank {slowest} waits" if len(about.ranks) > 1 else "it waits"
    return Finding(
        "reading",
        share,
        f"Reading holds the training up: {who} {_ms(about.read)} for the images of a step of "
        f"{_ms(about.step)} ({percent(share)}).",
        f"Read ahead with more threads, `--readers {2 * about.readers}` instead of "
        f"{about.readers}, or keep the images where they are read faster (HDF5, a local disk).",
    )


def _exchange(about: Situation) -> Finding | None:
    share = about.exchange / about.step
    if share < EXCHANGE or len(about.ranks) == 1:
        return None
    ways = []
    small = about.message < SMALL_MESSAGE
    if small:
        ways.append("a larger `--batch-size`, which moves more at once")
    if not about.shared_memory:
        ways.append("shared memory, by leaving out `--no-shared-memory`")
    if about.rounded is False and not small:
        ways.append("`--rounded`, which halves the bytes")
    if not about.planned:
        ways.append(
            "`--weights auto`, which plans for short steps and leaves out ranks that do not pay"
        )
    ways.append("fewer ranks")
    moved = (
        f", moving {size_text(about.message)} each on average" if isfinite(about.message) else ""
    )
    if about.costliest:
        moved += f"; those in front of {about.costliest[0]} take {_ms(about.costliest[1])}"
    return Finding(
        "exchange",
        share,
        f"Exchanges take {_ms(about.exchange)} of a step of {_ms(about.step)} ({percent(share)})"
        f"{moved}.",
        f"Try {_alternatives(ways)}.",
    )


def _waiting(about: Situation) -> Finding | None:
    share = about.waited / about.step
    if share < WAITING or len(about.ranks) == 1:
        return None
    ranks = range(len(about.ranks))
    longest = max(ranks, key=lambda i: about.compute[i])
    shortest = min(ranks, key=lambda i: about.compute[i])
    behind = _others(about.compute, longest)
    ahead = _others(about.compute, shortest)
    if about.compute[longest] >= UNEVEN * behind:
        return _slow(about, longest, share)
    if about.compute[shortest] <= ahead / UNEVEN:
        return _spare(about, shortest, share)
    return _out_of_step(about, share)


def _slow(about: Situation, i: int, share: float) -> Finding:
    """Describe a rank that computes longest."""
    rank = about.ranks[i]
    others = [about.waiting[k] for k in range(len(about.ranks)) if k != i]
    who = f"rank {about.ranks[1 - i]}" if len(others) == 1 else "the other ranks"
    typical = _ms(_others(about.compute, i))
    typical += " in the middle" if len(others) > 1 else ""
    waits = f"{percent(median(others) / about.step)} of the time"
    figures = (
        f"Rank {rank} computes longest: {_ms(about.compute[i])} of a step of {_ms(about.step)}, "
        f"{who} {typical}, and {'they wait' if len(others) > 1 else 'it waits'} {waits}."
    )
    if about.shares and about.shares[i] <= LITTLE:
        out = ",".join(
            "0" if k == i else f"{100 * told:.0f}" for k, told in enumerate(about.shares)
        )
        advice = (
            f"It has only {percent(about.shares[i])} of the channels, and less would hardly be "
            f"faster: try without it (`--weights {out}`)"
        )
        advice += "." if about.planned else ", or let `--weights auto` decide."
    elif about.planned:
        advice = (
            "Its share was planned from measured times: measure again and for longer "
            "(`--profile-seconds 60`), while nothing else runs there."
        )
    else:
        advice = f"Give it less: `--weights auto` measures and plans it{_by_these_times(about)}."
    return Finding("a slow rank", share, figures, advice)


def _spare(about: Situation, i: int, share: float) -> Finding:
    """Describe a rank that waits for the others."""
    figures = (
        f"Rank {about.ranks[i]} waits {percent(about.waiting[i] / about.step)} of the time: it "
        f"computes {_ms(about.compute[i])} of a step of {_ms(about.step)}, the others "
        f"{_ms(_others(about.compute, i))}."
    )
    if about.planned:
        advice = (
            "It could take more: measure again and for longer (`--profile-seconds 60`), while "
            "nothing else runs there."
        )
    else:
        advice = f"Give it more: `--weights auto` measures and plans it{_by_these_times(about)}."
    return Finding("a spare rank", share, figures, advice)


def _out_of_step(about: Situation, share: float) -> Finding:
    """Describe ranks that compute about equally long but wait nevertheless."""
    figures = (
        f"The ranks wait for each other {percent(share)} of the time, although they compute about "
        f"equally long ({_ms(min(about.compute))} to {_ms(max(about.compute))} of a step of "
        f"{_ms(about.step)})"
    )
    if about.awaited:
        figures += f", most of it at {about.awaited[0]} ({_ms(about.awaited[1])})"
    figures += "."
    if about.crowded:
        advice = (
            "They seem to take turns on too few cores: start fewer ranks, or give each rank cores "
            "of its own."
        )
    elif about.planned:
        advice = (
            "Each is early in some layers and late in others, or their speed varies: see the times "
            "by layer, and what else runs on these machines."
        )
    else:
        advice = (
            "Each is early in some layers and late in others, or their speed varies: "
            "`--weights auto` plans every layer on its own."
        )
    return Finding("out of step", share, figures, advice)


def _short(about: Situation) -> Finding | None:
    if about.step >= SHORT_STEP:
        return None
    size = f" of {about.batch_size} images" if about.batch_size else ""
    many = len(about.ranks) > 1
    return Finding(
        "short steps",
        max(EXCHANGE, (about.exchange + about.waited) / about.step if many else 0.0),
        f"A step{size} takes only {_ms(about.step)}, so most of it is what every operation"
        f"{' and every exchange' if many else ''} takes however little there is to do.",
        "Try a larger `--batch-size`" + (", or fewer ranks." if many else "."),
    )


def _nothing_wrong(about: Situation) -> Finding:
    parts = {
        "computing": mean(about.compute),
        "exchanges": about.exchange,
        "waiting": mean(about.waiting),
        "reading": mean(about.reading),
    }
    told = [f"{name} {percent(seconds / about.step)}" for name, seconds in parts.items()]
    computing = parts["computing"] / about.step
    if computing < COMPUTE:
        return Finding(
            "none",
            0.0,
            f"No single cause stands out: of a step of {_ms(about.step)}, {listed(told)}.",
            "A larger `--batch-size` usually shifts it towards computing.",
        )
    if len(about.ranks) == 1:
        return Finding(
            "computing",
            computing,
            f"Computing takes {percent(computing)} of a step of {_ms(about.step)}, on one rank.",
            _left_out(about) or "It is as fast as this device is; more ranks would share the work.",
        )
    return Finding(
        "computing",
        computing,
        f"The ranks are in balance and compute {percent(computing)} of a step of "
        f"{_ms(about.step)}.",
        _left_out(about) or "These devices do what they can; more or faster ones would help.",
    )


def _left_out(about: Situation) -> str:
    """Advise on a plan that leaves out some ranks; empty if it leaves out none."""
    if not about.left_out:
        return ""
    many = len(about.left_out) > 1
    return (
        f"Rank{'s' * many} {ranges(about.left_out)} {'take' if many else 'takes'} no part, because "
        "the plan expects a step to be faster so; a larger `--batch-size` may change that."
    )


def _notes(about: Situation) -> tuple[str, ...]:
    notes = []
    if about.slowdown:
        told = ",".join(f"{factor:g}" for factor in about.slowdown)
        notes.append(
            f"Ranks were slowed on purpose (`--slowdown {told}`): the times are not those of this "
            "machine."
        )
    for host, ranks, cores in about.crowded:
        notes.append(
            f"{ranks} ranks ran on {host}, and each may use {cores} cores: where these are the "
            "same ones, ranks take turns, which shows as waiting."
        )
    if about.predicted:
        step = about.step - mean(about.reading)
        ratio = step / about.predicted
        if not 1 / PREDICTED <= ratio <= PREDICTED:
            notes.append(
                f"A step takes {_ms(step)}, {ratio:.2g} times the {_ms(about.predicted)} that were "
                "predicted: the profile no longer fits, so measure and plan again "
                "(`hetmp profile`, `--weights auto`)."
            )
    if about.counted < FEW:
        steps = f"{about.counted} step{'s' * (about.counted != 1)}"
        notes.append(f"These are medians over only {steps}: a longer run tells more.")
    return tuple(notes)


def _by_these_times(about: Situation) -> str:
    """Suggest weights from channels per second; empty if they are not known."""
    if not about.shares or any(share <= 0 for share in about.shares) or len(about.ranks) > 8:
        return ""
    speeds = [
        share / max(1e-9, told) for share, told in zip(about.shares, about.compute, strict=True)
    ]
    weights = ",".join(str(max(1, round(100 * speed / sum(speeds)))) for speed in speeds)
    return f"; by these times about `--weights {weights}`"


def _others(values: Sequence[float], i: int) -> float:
    """Return the median of all values but the *i*-th."""
    return median([value for k, value in enumerate(values) if k != i])


def _alternatives(ways: Sequence[str]) -> str:
    return ways[0] if len(ways) == 1 else f"{', '.join(ways[:-1])}, or {ways[-1]}"


def _ms(seconds: float) -> str:
    return seconds_text(seconds)
