"""The content of a report: its runs, their diagnosis and pictures, in order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hetmp.core.text import NONE, digits
from hetmp.tools.report import pictures
from hetmp.tools.report.diagnosis import Diagnosis, Finding, diagnose
from hetmp.tools.report.head import ended, facts, title
from hetmp.tools.report.measures import KINDS, TimeByKind, members, step_times
from hetmp.tools.report.pictures import Missing, Picture
from hetmp.tools.report.prediction import compared, sentences
from hetmp.tools.report.reading import Run
from hetmp.tools.report.situation import situation
from hetmp.tools.report.text import Table, percent, seconds_text


@dataclass(frozen=True)
class Section:
    """Pictures that belong together."""

    title: str
    pictures: tuple[Picture, ...]
    missing: tuple[Missing, ...]


@dataclass(frozen=True)
class RunContent:
    """The content of one run.

    Attributes:
        title: network, data and ranks.
        facts: (label, lines) of the header table.
        figures: (name, value) of the most important figures.
        diagnosis: the causes that limit it.
        prediction: sentences on how its plan's prediction compares; none if it had none.
        sections: its pictures.
    """

    label: str
    title: str
    ended: str
    facts: tuple[tuple[str, tuple[str, ...]], ...]
    figures: tuple[tuple[str, str], ...]
    diagnosis: Diagnosis
    prediction: tuple[str, ...]
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Content:
    """The content of a report.

    Attributes:
        compared: pictures of several runs together; None for one run.
        table: a row for each of several runs; None for one run.
    """

    title: str
    runs: tuple[RunContent, ...]
    compared: Section | None = None
    table: Table | None = None

    @property
    def pictures(self) -> list[Picture]:
        """Return all pictures, in the order of the page."""
        sections = [self.compared] if self.compared else []
        sections += [section for run in self.runs for section in run.sections]
        return [picture for section in sections for picture in section.pictures]


def content(runs: Sequence[Run]) -> Content:
    """Make the content of a report of *runs*."""
    if len(runs) == 1:
        shown = _run(runs[0], curves=True)
        return Content(shown.title, (shown,))
    compared = _section(
        "Curves", [pictures.loss(runs), pictures.accuracy(runs), pictures.throughput(runs)]
    )
    steps = _section("", [pictures.runs(runs)])
    return Content(
        f"{len(runs)} runs side by side",
        tuple(_named_apart(_run(run, curves=False), number) for number, run in enumerate(runs)),
        Section(
            "Side by side",
            steps.pictures + compared.pictures,
            steps.missing + compared.missing,
        ),
        runs_table(runs),
    )


HEADINGS = (
    "run", "ended", "ranks", "steps", "images/s", "step", *KINDS, "test accuracy",
)  # fmt: skip


def runs_table(runs: Sequence[Run]) -> Table:
    """Make a table with a row for each run."""
    return Table(HEADINGS, tuple(_row(run) for run in runs), words=2)


def _row(run: Run) -> tuple[str, ...]:
    times = step_times(run.last)
    ending = {"end": "yes", "stopped": "asked to"}[run.ending.kind] if run.ending else "no"
    ranks = len(members(run.last))
    tested = run.evaluations[-1].accuracy if run.evaluations else float("nan")
    return (
        run.label,
        ending,
        str(ranks) if ranks else NONE,
        str(max((step.step + 1 for step in run.steps), default=0)),
        digits(times.images_per_second) if times else NONE,
        seconds_text(times.step) if times else NONE,
        *(percent(_share(times, kind)) if times else NONE for kind in KINDS),
        f"{100 * tested:.2f} %" if tested == tested else NONE,
    )


def _share(times: TimeByKind, kind: str) -> float:
    return float(times.median[kind].mean()) / times.step if times.step else 0.0


def _run(run: Run, curves: bool) -> RunContent:
    part = run.last
    times = step_times(part)
    foreseen = pictures.prediction(part)
    where = [pictures.ranks(part), pictures.layers(part), *([foreseen] if foreseen else [])]
    sections = [
        _section("Where the time goes", [*where, pictures.predicted(part)]),
        _section(
            "How the network is shared",
            [pictures.partition(part), pictures.memory(part), pictures.exchanges(part)],
        ),
    ]
    if curves:
        over_steps = [pictures.loss([run]), pictures.accuracy([run]), pictures.throughput([run])]
        sections.insert(0, _section("Training", over_steps))
    return RunContent(
        run.label,
        title(run),
        ended(run),
        tuple(facts(run)),
        _figures(run, times),
        _with_what_lasts(diagnose(situation(part)), run),
        sentences(compared(part)),
        tuple(sections),
    )


def _figures(run: Run, times: TimeByKind | None) -> tuple[tuple[str, str], ...]:
    figures = []
    if times is not None:
        figures += [
            ("images/s", digits(times.images_per_second)),
            ("a step", seconds_text(times.step)),
        ]
        figures += [(_NAMES[kind], percent(_share(times, kind))) for kind in KINDS]
    tested = [
        evaluation.accuracy
        for evaluation in run.evaluations
        if evaluation.accuracy == evaluation.accuracy
    ]
    if tested:
        figures.append(("test accuracy", f"{100 * tested[-1]:.2f} %"))
    return tuple(figures)


_NAMES = {
    "compute": "computing",
    "exchange": "exchanges",
    "waiting": "waiting",
    "reading": "reading",
}


def _with_what_lasts(diagnosis: Diagnosis, run: Run) -> Diagnosis:
    """Add a note on skipped steps, which the times do not show."""
    skipped = sum(step.skipped for step in run.steps)
    if not skipped:
        return diagnosis
    note = f"{skipped} of {len(run.steps)} steps were left out, as their figures were not finite."
    return replace(diagnosis, notes=(*diagnosis.notes, note))


def _section(name: str, items: Sequence[Picture | Missing]) -> Section:
    return Section(
        name,
        tuple(item for item in items if isinstance(item, Picture)),
        tuple(item for item in items if isinstance(item, Missing)),
    )


def _named_apart(run: RunContent, number: int) -> RunContent:
    """Put the run's number before the file names of its pictures."""
    before = f"run-{number + 1}-{_file_name(run.label)}-"
    sections = [
        replace(
            section,
            pictures=tuple(
                replace(picture, name=before + picture.name) for picture in section.pictures
            ),
        )
        for section in run.sections
    ]
    return replace(run, sections=tuple(sections))


def _file_name(label: str) -> str:
    cleaned = "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in label)
    return cleaned.encode("ascii", "replace").decode().replace("?", "-")[:40].strip("-.") or "run"


__all__ = ["Content", "Finding", "RunContent", "Section", "content", "runs_table"]
