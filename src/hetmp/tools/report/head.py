"""The header table of a run, as (label, lines) pairs, and how the run ended."""

import math
from collections.abc import Sequence
from typing import Any

from hetmp.core.text import count_ranks
from hetmp.tools.report.measures import members, shared, shares
from hetmp.tools.report.pictures.curves import runs_steps
from hetmp.tools.report.reading import NAME, Run, RunPart
from hetmp.tools.report.records import PlaceRecord, RunRecord
from hetmp.tools.report.text import percent, ranges, seconds_text

SHOWN_SHARES = 8
"""Most ranks whose shares are listed."""

_AIDS = (
    *("slowdown", "no_shared_memory", "rounded", "regather", "recompute"),
    *("autocast", "accumulate", "layerwise"),
)
"""Settings that change times or memory, listed if they are not the default."""


def title(run: Run) -> str:
    """Return the title of a run: ``digits on digits, 3 ranks``."""
    if run.record is None:
        return run.label
    config = run.record.config
    ranks = count_ranks(len(members(run.last)) or run.record.ranks)
    return f"{config.get('model', 'a model')} on {config.get('data', 'data')}, {ranks}"


def facts(run: Run) -> list[tuple[str, tuple[str, ...]]]:
    """Return the header table of a run: (label, lines) pairs, in order."""
    record = run.record
    rows: list[tuple[str, tuple[str, ...]]] = [
        ("run", (str(run.path.parent if run.path.name == NAME else run.path),))
    ]
    if record is None:
        rows.append(("record", ("the file does not say what was run: its first line is missing",)))
        return [*rows, ("end", (ended(run),))]
    started = next((part.record.started for part in run.parts if part.record), "")
    rows += [("started", (_moment(started),)), ("end", (ended(run),))]
    if len(run.parts) > 1:
        rows.append(("parts", _parts(run.parts)))
    rows += [("training", (_training(record),)), ("ranks", (_ranks(run.last, record),))]
    rows.append(("machines", _machines(record.placement)))
    rows.append(("software", (_software(record),)))
    special = _special(record.config)
    if special:
        rows.append(("settings", (special,)))
    if run.unreadable:
        rows.append(("file", (_unreadable(run),)))
    return [fact for fact in rows if fact[1]]


def ended(run: Run) -> str:
    """Return a sentence on how the run ended."""
    ending, last = run.ending, run.last
    planned = last.record.steps if last.record else 0
    of_steps = f" of {planned}" if planned else ""
    if ending is None:
        return (
            f"no end was recorded after {runs_steps(run)}{of_steps} steps: it was cut off, or is "
            "still going"
        )
    if ending.kind == "stopped":
        return (
            f"asked to end after {ending.steps}{of_steps} steps; it saved, and can be resumed with "
            "--resume auto"
        )
    accuracy = ""
    if math.isfinite(ending.accuracy):
        accuracy = f", {100 * ending.accuracy:.2f} % test accuracy"
    took = _duration(run)
    return f"finished after {ending.steps} steps{accuracy}{took}"


def _duration(run: Run) -> str:
    """Return the time from the first step's end to the run's; empty if unknown or resumed."""
    first = next((step.time for step in run.steps if step.time is not None), None)
    last = run.ending.time if run.ending else None
    if first is None or last is None or len(run.parts) > 1:
        return ""
    return f", {seconds_text(max(0.0, last - first))} after its first step"


def _moment(started: str) -> str:
    """Format ``2026-11-22T09:19:49+0000`` as ``2026-11-22 09:19:49 +0000``."""
    day, _, clock = started.partition("T")
    return f"{day} {clock[:8]} {clock[8:]}".strip() or "not recorded"


def _parts(parts: Sequence[RunPart]) -> tuple[str, ...]:
    lines = []
    for part in parts:
        ranks = len(members(part)) or (part.record.ranks if part.record else 0)
        steps = f"{len(part.steps)} step{'s' * (len(part.steps) != 1)}"
        since = part.record.resumed if part.record else 0
        lines.append(f"{steps} from step {since} on {count_ranks(ranks)}")
    return (*lines, "figures by rank and layer are of the last part that took a step")


def _training(record: RunRecord) -> str:
    config = record.config
    parts = [f"{record.steps} steps of {config.get('batch_size', '?')} images"]
    parts += [str(config[name]) for name in ("optimizer", "schedule", "dtype") if config.get(name)]
    if config.get("lr") is not None:
        parts.insert(2, f"learning rate {_plain(config['lr'])}")
    return ", ".join(parts)


def _ranks(part: RunPart, record: RunRecord) -> str:
    ranks, held, plan = members(part), shares(part), record.plan
    text, what = count_ranks(len(ranks)), shared(part)
    if held and len(ranks) <= SHOWN_SHARES:
        text += f" with {', '.join(percent(share) for share in held)} of the {what}"
    elif held:
        text += f" with {percent(min(held))} to {percent(max(held))} of the {what} each"
    if plan and plan.left_out:
        text += f"; left out of {plan.ranks}: rank{'s' * (len(plan.left_out) > 1)} "
        text += ranges(plan.left_out)
    weights = record.config.get("weights")
    if weights == "auto" or (plan and plan.predicted_seconds):
        return f"{text}; planned from measured times"
    if isinstance(weights, list) and len(weights) <= SHOWN_SHARES:
        return f"{text}; weights {_plain(weights)}"
    return text


def _machines(places: Sequence[PlaceRecord]) -> tuple[str, ...]:
    """Return a line for each set of ranks with the same host, device, cores and threads."""
    alike: dict[tuple[str, str, int, int], list[int]] = {}
    for rank, place in enumerate(places):
        alike.setdefault((place.host, place.device, place.cores, place.threads), []).append(rank)
    lines = []
    for (host, device, cores, threads), ranks in alike.items():
        who = f"rank{'s' * (len(ranks) > 1)} {ranges(ranks)}"
        lines.append(
            f"{who}: {host}, {device or 'unknown device'}, {cores} core{'s' * (cores != 1)}, "
            f"{threads} thread{'s' * (threads != 1)}"
        )
    if len(lines) > SHOWN_SHARES:
        more = len(lines) - SHOWN_SHARES
        lines = [*lines[:SHOWN_SHARES], f"and {more} more, in {places[0].host} and others"]
    return tuple(lines)


def _software(record: RunRecord) -> str:
    texts = [f"{name} {version}" for name, version in record.versions.items()]
    return ", ".join([*texts, record.mpi] if record.mpi else texts) or "not recorded"


def _special(config: dict[str, Any]) -> str:
    usual: tuple[Any, ...] = (None, False, 1, [], "none")
    changed = [(name, config[name]) for name in _AIDS if config.get(name) not in usual]
    return ", ".join(
        name if value is True else f"{name} {_plain(value)}" for name, value in changed
    )


def _plain(value: Any) -> str:
    """Format a setting as its flag takes it: ``1,2.5``."""
    if isinstance(value, list):
        return ",".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _unreadable(run: Run) -> str:
    count = len(run.unreadable)
    if run.torn and count == 1:
        return "its last line is torn and left out"
    return (
        f"{count} line{'s' * (count > 1)} cannot be read and are left out: {ranges(run.unreadable)}"
    )
