"""A trace in Chrome's format, which Perfetto opens.

The format: "Trace Event Format" of the Chromium project. Each rank is a process; its first track
has the rank's work as nested slices: step, phase, operation, exchange, waiting. Its second track
has each exchange from beginning to end, even if the rank computes in between.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from hetmp.slicing.recording import PHASE, ExchangePlace
from hetmp.tools.trace.rank_part import Exchanged, RankPart, TracedStep

WORK, EXCHANGES = 0, 1
"""The tracks of a rank."""

LEAST_WAITING = 1e-6
"""Seconds below which waiting is not shown: less than the clocks' error."""


GRAIN = 0.125
"""Microseconds to round times to: whole nanoseconds whose sums are exact, so that no slice ends
after the slice around it."""


class Arrivals:
    """The times when the ranks arrived at the exchanges of a step."""

    def __init__(self, steps: Sequence[TracedStep]) -> None:
        self._at: dict[tuple[int, int], dict[int, float]] = {}
        for rank, step in enumerate(steps):
            for exchange in step.exchanges:
                self._at.setdefault((exchange.place, exchange.turn), {})[rank] = exchange.arrived

    def last(self, exchange: Exchanged) -> tuple[int, float]:
        """Return the rank that arrived last at an exchange, and its time in seconds."""
        at = self._at[exchange.place, exchange.turn]
        rank = max(at, key=lambda rank: at[rank])
        return rank, at[rank]


def chrome_trace(
    parts: Sequence[RankPart],
    places: Sequence[ExchangePlace],
    names: Sequence[str],
    first: int,
    extra: dict[str, Any],
) -> dict[str, Any]:
    """Make the document of a trace, ready for JSON.

    Args:
        parts: the records of every rank.
        places: the places where the model exchanges.
        names: names of the ranks, for the reader.
        first: number of the first step.
        extra: further information, by name.
    """
    zero = min(part.steps[0].reading for part in parts)
    events = [*_names(names)]
    for number in range(len(parts[0].steps)):
        arrivals = Arrivals([part.steps[number] for part in parts])
        for rank, part in enumerate(parts):
            step = part.steps[number]
            writer = _Writer(rank, zero, places, arrivals, len(parts))
            events += writer.step(step, first + number)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": extra}


def _names(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for rank, name in enumerate(names):
        for kind, args in (
            ("process_name", {"name": f"rank {rank}: {name}"}),
            ("process_sort_index", {"sort_index": rank}),
        ):
            yield {"ph": "M", "pid": rank, "name": kind, "args": args}
        for track, title in ((WORK, "work"), (EXCHANGES, "exchanges")):
            args = {"name": title}
            yield {"ph": "M", "pid": rank, "tid": track, "name": "thread_name", "args": args}
            args = {"sort_index": track}
            yield {"ph": "M", "pid": rank, "tid": track, "name": "thread_sort_index", "args": args}


class _Writer:
    """The writer of one rank's events."""

    def __init__(
        self,
        rank: int,
        zero: float,
        places: Sequence[ExchangePlace],
        arrivals: Arrivals,
        ranks: int,
    ) -> None:
        self._rank, self._zero, self._places = rank, zero, places
        self._arrivals = arrivals
        self._partners = [other for other in range(ranks) if other != rank]

    def step(self, step: TracedStep, number: int) -> Iterator[dict[str, Any]]:
        """Yield the events of a step, outer slices before inner ones, as viewers need them."""
        yield self._slice("reading", "reading", step.reading, step.began)
        yield self._slice(f"step {number}", "step", step.began, step.ended, step=number)
        for phase, within in groupby(step.slices, key=_phase):
            inner = list(within)
            yield self._slice(phase, "phase", inner[0].began, inner[-1].ended)
            for piece in inner:
                if piece.part != PHASE:
                    yield self._slice(
                        piece.title,
                        piece.part,
                        piece.began,
                        piece.ended,
                        layer=piece.layer or "(before)",
                    )
        for exchange in step.exchanges:
            yield from self._exchange(exchange)

    def _exchange(self, exchange: Exchanged) -> Iterator[dict[str, Any]]:
        place = self._places[exchange.place]
        if place.collective == "-":
            return
        last, all_there = self._arrivals.last(exchange)
        waited = 0.0
        for doing, (began, ended) in zip(("begin", "finish"), exchange.spans, strict=True):
            name = f"{doing} {place.collective}"
            yield self._slice(name, "exchange", began, ended, layer=place.layer)
            waiting = min(ended, all_there) - began
            if last != self._rank and waiting > LEAST_WAITING:
                waited += waiting
                yield self._slice(f"waiting for rank {last}", "waiting", began, began + waiting)
        yield self._slice(
            f"{place.collective} for {place.name}",
            "exchange",
            exchange.arrived,
            exchange.spans[-1][1],
            track=EXCHANGES,
            layer=place.layer,
            direction=place.direction,
            bytes_received=exchange.bytes,
            partners=self._partners,
            last_to_arrive=last,
            waited_ms=round(1e3 * waited, 3),
        )

    def _slice(
        self, name: str, kind: str, began: float, ended: float, track: int = WORK, **args: Any
    ) -> dict[str, Any]:
        return {
            "ph": "X",
            "pid": self._rank,
            "tid": track,
            "name": name,
            "cat": kind,
            "ts": self._microseconds(began),
            "dur": self._microseconds(ended) - self._microseconds(began),
            "args": args,
        }

    def _microseconds(self, seconds: float) -> float:
        return round(1e6 * (seconds - self._zero) / GRAIN) * GRAIN


def _phase(piece: Any) -> str:
    """Return the phase of the step that a slice belongs to."""
    if piece.part == PHASE:
        return str(piece.title)
    return "forward" if piece.part == "forward" else "backward"
