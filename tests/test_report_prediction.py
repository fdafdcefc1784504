"""A run's step beside its prediction: the figures, the words, and what comes next to them."""

import copy

import pytest

from helpers import recorded
from hetmp.planner.planner import FASTEST_ALONE
from hetmp.tools.report import read_runs, write_report
from hetmp.tools.report.prediction import ALONE, FAR, Compared, compared, sentences
from hetmp.tools.report.terminal import gist


def facts(measured=0.105, predicted=0.101, kinds=None, expected=None, alone=0.151, ranks=3):
    """A step of 90 ms of computing, 10 of exchanges and 5 of waiting, unless said otherwise."""
    return Compared(
        ranks,
        measured,
        predicted,
        kinds or {"compute": 0.09, "exchange": 0.01, "waiting": 0.005},
        {"compute": 0.09, "exchange": 0.01, "waiting": 0.001} if expected is None else expected,
        {} if alone is None else {ALONE: alone},
    )


def test_a_step_beside_its_prediction_and_one_rank():
    first, second = sentences(facts())
    assert first == (
        "A step took 105 ms; 101 ms were predicted (+4.0 %). The fastest rank alone would take "
        "151 ms by prediction: this run is 1.44 times as fast."
    )
    assert second == "Off the prediction: waiting took 5 ms, predicted were 1 ms."


def test_one_rank_that_would_be_faster():
    first, *_ = sentences(facts(alone=0.0525))
    assert first.endswith("it would be 2.00 times as fast as this run.")


def test_what_is_not_known_is_not_said():
    assert sentences(None) == ()
    lone = "A step took 105 ms; 101 ms were predicted (+4.0 %)."
    assert sentences(facts(alone=None, expected={})) == (lone,)
    assert sentences(facts(ranks=1, expected={})) == (lone,)


def test_parts_that_are_off_come_largest_first():
    expected = {"compute": 0.06, "exchange": 0.0, "waiting": 0.0045}
    _, off = sentences(facts(expected=expected))
    assert off == (
        "Off the prediction: computing took 90 ms, predicted were 60 ms; exchanges took 10 ms, "
        "predicted were 0 ms."
    )


@pytest.mark.parametrize(
    ("ratio", "said"), [(0.5, True), (1 / FAR + 0.02, False), (FAR - 0.05, False), (3.0, True)]
)
def test_a_profile_that_no_longer_fits(ratio, said):
    *_, last = sentences(facts(predicted=0.105 / ratio, expected={}))
    assert ("`hetmp profile`" in last and "no longer fits" in last) is said
    assert ("+" in sentences(facts(predicted=0.105 / ratio))[0]) is (ratio > 1)


@pytest.mark.parametrize(
    ("kind", "more", "cause"),
    [
        ("compute", 0.06, "the devices were faster"),
        ("compute", -0.06, "the devices were slower"),
        ("exchange", 0.06, "the links were faster"),
        ("waiting", 0.06, "a rank is slower"),
        ("waiting", -0.06, "the ranks are more even"),
    ],
)
def test_the_cause_is_that_of_the_part_that_is_off_most(kind, more, cause):
    expected = {"compute": 0.09, "exchange": 0.07, "waiting": 0.07}
    measured = expected | {kind: expected[kind] + more}
    step = sum(measured.values())
    *_, last = sentences(facts(step, 2 * step, kinds=measured, expected=expected))
    assert f"no longer fits: {cause}" in last


def test_a_plan_names_one_rank_as_the_report_looks_for_it():
    assert ALONE == FASTEST_ALONE


@pytest.fixture
def run(tmp_path):
    """Builds a run of three ranks of a plan with a prediction, and reads it."""

    def read(change=lambda plan: None, **more):
        plan = recorded.plan(3, 4, predicted=True)
        change(plan)
        records = recorded.whole_run(plan, [0.08, 0.09, 0.1], **more)
        for record in records:
            if record["kind"] == "step":
                record["seconds"]["reading"] = [0.05] * 3
        return read_runs([recorded.written(tmp_path / "run", copy.deepcopy(records))])[0]

    return read


def test_figures_of_a_run(run):
    made = compared(run().last)
    assert made.ranks == 3
    # Reading is no part of a prediction.
    assert made.measured == pytest.approx(0.11)
    assert made.predicted == pytest.approx(0.028)
    assert made.measured_kinds == pytest.approx(
        {"compute": 0.09, "exchange": 0.01, "waiting": 0.01}
    )
    assert made.predicted_kinds == pytest.approx(
        {"compute": 0.02, "exchange": 0.004, "waiting": 0.004}
    )
    assert made.alternatives == {ALONE: 0.2, "equal split": 0.15}


def test_runs_of_older_plans_and_of_none(run):
    def older(plan):
        del plan["predicted_alternatives"]
        plan["predicted"] = []

    made = compared(run(older).last)
    assert made.predicted_kinds == {} and made.alternatives == {}
    assert len(sentences(made)) == 2  # the step, and that the profile does not fit

    def unplanned(plan):
        plan["predicted_seconds"] = None

    assert compared(run(unplanned).last) is None


def test_the_page_and_the_terminal_say_it(run, tmp_path):
    from rich.console import Console

    read = run()
    content, path = write_report([read], tmp_path / "report")
    (shown,) = content.runs
    assert shown.prediction == sentences(compared(read.last))
    page = path.read_text()
    console = Console(width=1000)
    with console.capture() as captured:
        console.print(gist(content, [read]))
    for sentence in shown.prediction:
        assert f"<p>{sentence.split('`')[0]}" in page
        assert sentence.replace("`", "") in captured.get()
    assert (path.parent / "prediction.png").is_file()
