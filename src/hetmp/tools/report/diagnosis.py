"""Diagnose what limits a run, and advise what to try.

Each cause beyond its limit is found with its share of a step; the two largest are reported.
``docs/report.md`` explains the limits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import mean, median

from hetmp.core.text import bytes_text
from hetmp.tools.report.situation import Situation
from hetmp.tools.report.text import listed, percent, ranges, seconds_text

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


def diagnose(facts: Situation | None) -> Diagnosis:
    """Find the causes that limit a run, with advice."""
    if facts is None or not facts.step > 0:
        return UNKNOWN
    checks = [_reading(facts), _exchange(facts), _waiting(facts), _short(facts)]
    causes = sorted((finding for finding in checks if finding), key=lambda finding: -finding.share)
    return Diagnosis(tuple(causes[:TOLD]) or (_nothing_wrong(facts),), _notes(facts))


def _reading(facts: Situation) -> Finding | None:
    share = facts.read / facts.step
    if share < READING:
        return None
    slowest = facts.ranks[max(range(len(facts.ranks)), key=lambda i: facts.reading[i])]
    who = f"rank {slowest} waits" if len(facts.ranks) > 1 else "it waits"
    return Finding(
        "reading",
        share,
        f"Reading holds the training up: {who} {_ms(facts.read)} for the images of a step of "
        f"{_ms(facts.step)} ({percent(share)}).",
        f"Read ahead with more threads, `--readers {2 * facts.readers}` instead of "
        f"{facts.readers}, or keep the images where they are read faster (HDF5, a local disk).",
    )


def _exchange(facts: Situation) -> Finding | None:
    share = facts.exchange / facts.step
    if share < EXCHANGE or len(facts.ranks) == 1:
        return None
    ways = []
    small = facts.message < SMALL_MESSAGE
    if small:
        ways.append("a larger `--batch-size`, which moves more at once")
    if not facts.shared_memory:
        ways.append("shared memory, by leaving out `--no-shared-memory`")
    if facts.rounded is False and not small:
        ways.append("`--rounded`, which halves the bytes")
    if not facts.planned:
        ways.append(
            "`--weights auto`, which plans for short steps and leaves out ranks that do not pay"
        )
    ways.append("fewer ranks")
    moved = (
        f", moving {bytes_text(facts.message)} each on average" if isfinite(facts.message) else ""
    )
    if facts.costliest:
        moved += f"; those in front of {facts.costliest[0]} take {_ms(facts.costliest[1])}"
    return Finding(
        "exchange",
        share,
        f"Exchanges take {_ms(facts.exchange)} of a step of {_ms(facts.step)} ({percent(share)})"
        f"{moved}.",
        f"Try {_alternatives(ways)}.",
    )


def _waiting(facts: Situation) -> Finding | None:
    share = facts.waited / facts.step
    if share < WAITING or len(facts.ranks) == 1:
        return None
    ranks = range(len(facts.ranks))
    longest = max(ranks, key=lambda i: facts.compute[i])
    shortest = min(ranks, key=lambda i: facts.compute[i])
    behind = _others(facts.compute, longest)
    ahead = _others(facts.compute, shortest)
    if facts.compute[longest] >= UNEVEN * behind:
        return _slow(facts, longest, share)
    if facts.compute[shortest] <= ahead / UNEVEN:
        return _spare(facts, shortest, share)
    return _out_of_step(facts, share)


def _slow(facts: Situation, i: int, share: float) -> Finding:
    """Describe a rank that computes longest."""
    rank = facts.ranks[i]
    others = [facts.waiting[k] for k in range(len(facts.ranks)) if k != i]
    who = f"rank {facts.ranks[1 - i]}" if len(others) == 1 else "the other ranks"
    typical = _ms(_others(facts.compute, i))
    typical += " in the middle" if len(others) > 1 else ""
    waits = f"{percent(median(others) / facts.step)} of the time"
    figures = (
        f"Rank {rank} computes longest: {_ms(facts.compute[i])} of a step of {_ms(facts.step)}, "
        f"{who} {typical}, and {'they wait' if len(others) > 1 else 'it waits'} {waits}."
    )
    if facts.shares and facts.shares[i] <= LITTLE:
        out = ",".join(
            "0" if k == i else f"{100 * held:.0f}" for k, held in enumerate(facts.shares)
        )
        advice = (
            f"It has only {percent(facts.shares[i])} of the {facts.shared}, and less would "
            f"hardly be faster: try without it (`--weights {out}`)"
        )
        advice += "." if facts.planned else ", or let `--weights auto` decide."
    elif facts.planned:
        advice = (
            "Its share was planned from measured times: measure again and for longer "
            "(`--profile-seconds 60`), while nothing else runs there."
        )
    else:
        advice = f"Give it less: `--weights auto` measures and plans it{_by_these_times(facts)}."
    return Finding("a slow rank", share, figures, advice)


def _spare(facts: Situation, i: int, share: float) -> Finding:
    """Describe a rank that waits for the others."""
    figures = (
        f"Rank {facts.ranks[i]} waits {percent(facts.waiting[i] / facts.step)} of the time: it "
        f"computes {_ms(facts.compute[i])} of a step of {_ms(facts.step)}, the others "
        f"{_ms(_others(facts.compute, i))}."
    )
    if facts.planned:
        advice = (
            "It could take more: measure again and for longer (`--profile-seconds 60`), while "
            "nothing else runs there."
        )
    else:
        advice = f"Give it more: `--weights auto` measures and plans it{_by_these_times(facts)}."
    return Finding("a spare rank", share, figures, advice)


def _out_of_step(facts: Situation, share: float) -> Finding:
    """Describe ranks that compute about equally long but wait nevertheless."""
    figures = (
        f"The ranks wait for each other {percent(share)} of the time, although they compute about "
        f"equally long ({_ms(min(facts.compute))} to {_ms(max(facts.compute))} of a step of "
        f"{_ms(facts.step)})"
    )
    if facts.awaited:
        figures += f", most of it at {facts.awaited[0]} ({_ms(facts.awaited[1])})"
    figures += "."
    if facts.crowded:
        advice = (
            "They seem to take turns on too few cores: start fewer ranks, or give each rank cores "
            "of its own."
        )
    elif facts.planned:
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


def _short(facts: Situation) -> Finding | None:
    if facts.step >= SHORT_STEP:
        return None
    size = f" of {facts.batch_size} images" if facts.batch_size else ""
    many = len(facts.ranks) > 1
    return Finding(
        "short steps",
        max(EXCHANGE, (facts.exchange + facts.waited) / facts.step if many else 0.0),
        f"A step{size} takes only {_ms(facts.step)}, so most of it is what every operation"
        f"{' and every exchange' if many else ''} takes however little there is to do.",
        "Try a larger `--batch-size`" + (", or fewer ranks." if many else "."),
    )


def _nothing_wrong(facts: Situation) -> Finding:
    parts = {
        "computing": mean(facts.compute),
        "exchanges": facts.exchange,
        "waiting": mean(facts.waiting),
        "reading": mean(facts.reading),
    }
    texts = [f"{name} {percent(seconds / facts.step)}" for name, seconds in parts.items()]
    computing = parts["computing"] / facts.step
    if computing < COMPUTE:
        return Finding(
            "none",
            0.0,
            f"No single cause stands out: of a step of {_ms(facts.step)}, {listed(texts)}.",
            "A larger `--batch-size` usually shifts it towards computing.",
        )
    if len(facts.ranks) == 1:
        return Finding(
            "computing",
            computing,
            f"Computing takes {percent(computing)} of a step of {_ms(facts.step)}, on one rank.",
            _left_out(facts) or "It is as fast as this device is; more ranks would share the work.",
        )
    return Finding(
        "computing",
        computing,
        f"The ranks are in balance and compute {percent(computing)} of a step of "
        f"{_ms(facts.step)}.",
        _left_out(facts) or "These devices do what they can; more or faster ones would help.",
    )


def _left_out(facts: Situation) -> str:
    """Advise on a plan that leaves out some ranks; empty if it leaves out none."""
    if not facts.left_out:
        return ""
    many = len(facts.left_out) > 1
    return (
        f"Rank{'s' * many} {ranges(facts.left_out)} {'take' if many else 'takes'} no part, because "
        "the plan expects a step to be faster so; a larger `--batch-size` may change that."
    )


def _notes(facts: Situation) -> tuple[str, ...]:
    notes = []
    if facts.slowdown:
        factors = ",".join(f"{factor:g}" for factor in facts.slowdown)
        notes.append(
            f"Ranks were slowed on purpose (`--slowdown {factors}`): the times are not those of "
            "this machine."
        )
    for host, ranks, cores in facts.crowded:
        notes.append(
            f"{ranks} ranks ran on {host}, and each may use {cores} cores: where these are the "
            "same ones, ranks take turns, which shows as waiting."
        )
    if facts.counted < FEW:
        steps = f"{facts.counted} step{'s' * (facts.counted != 1)}"
        notes.append(f"These are medians over only {steps}: a longer run tells more.")
    return tuple(notes)


def _by_these_times(facts: Situation) -> str:
    """Suggest weights from channels per second; empty if they are not known."""
    if not facts.shares or any(share <= 0 for share in facts.shares) or len(facts.ranks) > 8:
        return ""
    speeds = [
        share / max(1e-9, seconds)
        for share, seconds in zip(facts.shares, facts.compute, strict=True)
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
