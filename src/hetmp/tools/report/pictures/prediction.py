"""A step beside its prediction, and beside other ways to use the ranks."""

from typing import TYPE_CHECKING

from hetmp.core.colors import GREEN
from hetmp.core.text import NONE, digits
from hetmp.tools.report.canvas import PARTS, Paint, height, legend, stacked
from hetmp.tools.report.pictures.picture import Picture
from hetmp.tools.report.prediction import KINDS, compared, sentences
from hetmp.tools.report.reading import RunPart
from hetmp.tools.report.text import Table, milliseconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "A step and its prediction"

WHOLE = Paint(GREEN)
"""The look of a step that is not divided into kinds."""


def prediction(part: RunPart) -> Picture | None:
    """Picture the measured and the predicted step by kind; None if nothing was predicted.

    Why there is none, ``predicted`` says.
    """
    facts = compared(part)
    if facts is None:
        return None
    measured = tuple(facts.measured_kinds[kind] for kind in KINDS)
    expected = tuple(facts.predicted_kinds.get(kind, 0.0) for kind in KINDS)
    undivided = [0.0, 0.0 if facts.predicted_kinds else facts.predicted]
    undivided += facts.alternatives.values()
    labels = ["measured", "predicted", *(name.partition(",")[0] for name in facts.alternatives)]
    nothing = [0.0] * len(facts.alternatives)

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        bars = [
            (PARTS[kind], [1e3 * measured[i], 1e3 * expected[i], *nothing])
            for i, kind in enumerate(KINDS)
        ]
        bars.append((WHOLE, [1e3 * seconds for seconds in undivided]))
        stacked(axes, labels, bars, "ms of a step, without reading", "")
        shown = [(kind, PARTS[kind]) for kind in KINDS]
        legend(figure, [*shown, ("predicted, as a whole", WHOLE)] if any(undivided) else shown)

    def cells(by_kind: tuple[float, ...]) -> tuple[str, ...]:
        return tuple(milliseconds(seconds) for seconds in by_kind)

    rows = [("measured", *cells(measured), milliseconds(facts.measured), "1.00")]
    planned = cells(expected) if facts.predicted_kinds else (NONE,) * len(KINDS)
    for name, by_kind, seconds in (
        ("predicted", planned, facts.predicted),
        *((name, (NONE,) * len(KINDS), other) for name, other in facts.alternatives.items()),
    ):
        rows.append((name, *by_kind, milliseconds(seconds), digits(seconds / facts.measured)))
    headings = ("step", *(f"{kind}, ms" for kind in KINDS), "in all, ms", "in all / measured")
    caption = (
        "In the mean over the ranks; measured are medians over the steps."
        + " The other bars are predicted for other ways to use the ranks of the job."
        * bool(facts.alternatives)
    )
    return Picture(
        "prediction",
        TITLE,
        " ".join(sentences(facts)[:2]),
        caption,
        Table(headings, tuple(rows)),
        height(len(labels)),
        draw,
    )
