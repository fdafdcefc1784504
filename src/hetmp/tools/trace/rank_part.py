"""One rank's part of a trace, by rank 0's clock."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from hetmp.cluster import ClockOffset
from hetmp.slicing.recording import PHASE, ExchangeSpan, StepRecording

Spans = tuple[tuple[float, float], ...]


class Slice(BaseModel):
    """An operation, or a phase of the step; seconds by rank 0's clock."""

    model_config = ConfigDict(frozen=True)

    title: str
    part: str
    layer: str
    began: float
    ended: float


class Exchanged(BaseModel):
    """One exchange: place, its index there in the step, (start, end) spans, bytes received."""

    model_config = ConfigDict(frozen=True)

    place: int
    turn: int
    spans: Spans
    bytes: int

    @property
    def arrived(self) -> float:
        """Return the time when the rank arrived."""
        return self.spans[0][0]


class TracedStep(BaseModel):
    """One step of one rank; seconds by rank 0's clock."""

    model_config = ConfigDict(frozen=True)

    reading: float
    """When the rank began to wait for the step's images."""
    began: float
    ended: float
    slices: tuple[Slice, ...]
    exchanges: tuple[Exchanged, ...]


class RankPart(BaseModel):
    """One rank's part of a trace."""

    model_config = ConfigDict(frozen=True)

    clock_error: float
    """Largest error of its times against rank 0's, in seconds."""
    steps: tuple[TracedStep, ...]


@dataclass(frozen=True)
class OnRootsClock:
    """A conversion of this rank's times to rank 0's clock, allowing for offset and drift.

    Attributes:
        before, after: (time, offset) as measured before and after the steps.
    """

    before: tuple[float, ClockOffset]
    after: tuple[float, ClockOffset]

    @property
    def error(self) -> float:
        """Return the largest error of a time, in seconds."""
        return max(self.before[1].error, self.after[1].error)

    def __call__(self, seconds: float) -> float:
        (began, first), (ended, last) = self.before, self.after
        passed = (seconds - began) / max(1e-9, ended - began)
        return seconds - (first.seconds + passed * (last.seconds - first.seconds))


def rank_part(
    steps: Sequence[tuple[float, StepRecording]],
    titles: Callable[[str], str],
    clock: OnRootsClock,
) -> RankPart:
    """Make this rank's part of a trace.

    Args:
        steps: for each step, when the rank began to wait for its images, and its recording.
        titles: returns the title of an operation, for the reader.
        clock: converts this rank's times.
    """
    traced = []
    for reading, record in steps:
        slices = [
            Slice(
                title=done.name if done.part == PHASE else titles(done.name),
                part=done.part,
                layer=done.layer,
                began=clock(done.began),
                ended=clock(done.ended),
            )
            for done in record.done
        ]
        traced.append(
            TracedStep(
                reading=clock(reading),
                began=clock(record.began),
                ended=clock(record.ended),
                slices=tuple(slices),
                exchanges=_exchanged(record.meetings, clock),
            )
        )
    return RankPart(clock_error=clock.error, steps=tuple(traced))


def _exchanged(
    meetings: Sequence[ExchangeSpan], clock: Callable[[float], float]
) -> tuple[Exchanged, ...]:
    turns: dict[int, int] = {}
    exchanges = []
    for meeting in meetings:
        turn = turns.get(meeting.place, 0)
        turns[meeting.place] = turn + 1
        spans = tuple((clock(began), clock(ended)) for began, ended in meeting.spans)
        exchanges.append(
            Exchanged(place=meeting.place, turn=turn, spans=spans, bytes=meeting.bytes)
        )
    return tuple(exchanges)
