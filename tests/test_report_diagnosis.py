"""What limits a run: each cause, its limit, and that the sentences have the figures."""

from dataclasses import replace

import pytest

from hetmp.tools.report.diagnosis import (
    EXCHANGE,
    READING,
    SHORT_STEP,
    TOLD,
    UNEVEN,
    WAITING,
    diagnose,
)
from hetmp.tools.report.situation import Situation


def situation(
    compute=(0.08, 0.08, 0.08),
    exchange=0.01,
    waiting=None,
    reading=None,
    ranks=None,
    **more,
):
    """Ranks that wait for the one that computes longest, unless *waiting* says otherwise."""
    waiting = waiting or tuple(max(compute) - own for own in compute)
    reading = reading or (0.0,) * len(compute)
    means = [sum(told) / len(compute) for told in (compute, waiting, reading)]
    about = {"counted": 50, "rounded": False, "batch_size": 64, "step": sum(means) + exchange}
    return Situation(
        ranks=ranks or tuple(range(len(compute))),
        compute=compute,
        exchange=exchange,
        waiting=waiting,
        reading=reading,
        **(about | more),
    )


def causes(about):
    return [finding.cause for finding in diagnose(about).findings]


def only(about):
    (finding,) = diagnose(about).findings
    return finding


def test_a_balanced_run_is_at_its_best():
    finding = only(situation())
    assert finding.cause == "computing"
    assert finding.text == (
        "The ranks are in balance and compute 89 % of a step of 90 ms. These devices do what they "
        "can; more or faster ones would help."
    )


def test_one_rank_is_bound_by_its_device():
    finding = only(situation(compute=(0.08,), exchange=0.0))
    assert finding.cause == "computing"
    assert "100 % of a step of 80 ms, on one rank" in finding.text
    assert "more ranks would share the work" in finding.text


def test_one_rank_of_a_plan_that_leaves_the_others_out():
    finding = only(situation(compute=(0.08,), exchange=0.0, ranks=(1,), left_out=(0, 2)))
    assert "Ranks 0, 2 take no part" in finding.advice
    assert "more ranks would" not in finding.text


def test_a_rank_that_computes_longest():
    about = situation((0.02, 0.02, 0.09), shares=(0.4, 0.4, 0.2), ranks=(0, 1, 3))
    finding = only(about)
    assert finding.cause == "a slow rank"
    assert finding.figures == (
        "Rank 3 computes longest: 90 ms of a step of 100 ms, the other ranks 20 ms in the middle, "
        "and they wait 70 % of the time."
    )
    # 20, 20 and 2.2 hundredths of the channels in a millisecond
    assert "`--weights auto`" in finding.advice and "`--weights 47,47,5`" in finding.advice


def test_a_rank_that_computes_longest_of_two():
    finding = only(situation((0.02, 0.09)))
    assert finding.figures == (
        "Rank 1 computes longest: 90 ms of a step of 100 ms, rank 0 20 ms, and it waits 70 % of "
        "the time."
    )


def test_the_advice_for_a_slow_rank_fits_what_was_done():
    slow = situation((0.02, 0.02, 0.09), shares=(0.5, 0.45, 0.05))
    assert "`--weights 50,45,0`" in only(slow).advice
    assert "`--weights auto` decide" in only(slow).advice
    assert "auto" not in only(replace(slow, planned=True)).advice
    planned = only(replace(slow, planned=True, shares=(0.4, 0.4, 0.2)))
    assert "`--profile-seconds 60`" in planned.advice


@pytest.mark.parametrize("ratio", [UNEVEN * 0.99, UNEVEN * 1.01])
def test_how_much_longer_is_longest(ratio):
    waiting = (0.05, 0.05, 0.05)
    about = situation((0.05, 0.05, 0.05 * ratio), waiting=waiting, exchange=0.005)
    assert causes(about) == ["a slow rank" if ratio > UNEVEN else "out of step"]


def test_a_rank_that_could_do_more():
    about = situation((0.02, 0.09, 0.088, 0.09), waiting=(0.07, 0.02, 0.02, 0.02))
    finding = only(about)
    assert finding.cause == "a spare rank"
    assert "Rank 0 waits 61 % of the time" in finding.figures
    assert finding.advice.startswith("Give it more: `--weights auto`")
    assert "measure again" in only(replace(about, planned=True)).advice


def test_ranks_that_are_late_in_turn():
    about = situation(waiting=(0.03, 0.03, 0.03), awaited=("features.conv2", 0.02))
    finding = only(about)
    assert finding.cause == "out of step"
    assert "25 % of the time" in finding.figures
    assert "most of it at features.conv2 (20 ms)" in finding.figures
    assert "plans every layer" in finding.advice
    assert "too few cores" in only(replace(about, crowded=(("node", 3, 2),))).advice


@pytest.mark.parametrize("above", [False, True])
def test_how_much_waiting_is_a_cause(above):
    share = WAITING + (0.01 if above else -0.01)
    wait = share / (1 - share) * 0.09
    assert (causes(situation(waiting=(wait,) * 3)) == ["out of step"]) is above


def test_exchanges_with_large_messages():
    about = situation(exchange=0.08, message=5e6, costliest=("layer1.conv2", 0.03))
    finding = only(about)
    assert finding.cause == "exchange"
    assert finding.figures == (
        "Exchanges take 80 ms of a step of 160 ms (50 %), moving 4.77 MiB each on average; those "
        "in front of layer1.conv2 take 30 ms."
    )
    assert "`--rounded`, which halves the bytes" in finding.advice
    assert "--batch-size" not in finding.advice
    for done, left in (
        ({"rounded": True}, "`--rounded`"),
        ({"planned": True}, "`--weights auto`"),
        ({}, "--no-shared-memory"),
    ):
        assert left not in only(replace(about, **done)).advice
    assert "`--no-shared-memory`" in only(replace(about, shared_memory=False)).advice


def test_exchanges_with_small_messages_want_a_larger_batch():
    advice = only(situation(exchange=0.08, message=2000.0)).advice
    assert "a larger `--batch-size`" in advice
    assert "--rounded" not in advice


@pytest.mark.parametrize("above", [False, True])
def test_how_much_exchange_is_a_cause(above):
    share = EXCHANGE + (0.01 if above else -0.01)
    about = situation(exchange=share / (1 - share) * 0.08)
    assert (causes(about) == ["exchange"]) is above


def test_reading():
    about = situation(reading=(0.0, 0.04, 0.0), waiting=(0.04, 0.0, 0.04), readers=2)
    finding = only(about)  # the others wait for the rank that reads: that is no cause of its own
    assert finding.cause == "reading"
    assert "rank 1 waits 40 ms for the images of a step of 130 ms (31 %)" in finding.figures
    assert "`--readers 4` instead of 2" in finding.advice


@pytest.mark.parametrize("above", [False, True])
def test_how_much_reading_is_a_cause(above):
    share = READING + (0.01 if above else -0.01)
    seconds = share / (1 - share) * 0.09
    assert (causes(situation(reading=(seconds,) * 3)) == ["reading"]) is above


@pytest.mark.parametrize("step", [SHORT_STEP * 0.9, SHORT_STEP * 1.1])
def test_short_steps(step):
    about = situation((0.9 * step,) * 3, exchange=0.1 * step)
    assert (causes(about) == ["short steps"]) is (step < SHORT_STEP)
    if step < SHORT_STEP:
        assert "A step of 64 images takes only 9 ms" in only(about).figures


def test_no_more_than_two_causes_the_larger_first():
    about = situation(
        (0.02, 0.02, 0.1), exchange=0.09, waiting=(0.08, 0.08, 0.0), reading=(0.03,) * 3
    )
    found = diagnose(about).findings
    assert len(found) == TOLD
    assert [one.cause for one in found] == ["exchange", "a slow rank"]
    assert found[0].share > found[1].share


def test_where_no_cause_stands_out():
    finding = only(situation(exchange=0.02, waiting=(0.012,) * 3, reading=(0.01,) * 3))
    assert finding.cause == "none"
    assert "computing 66 %, exchanges 16 %, waiting 9.8 % and reading 8.2 %" in finding.figures


def test_notes_on_what_the_figures_are():
    about = situation(slowdown=(1.0, 2.0, 4.0), crowded=(("node", 3, 2),), counted=4)
    slowed, crowded, few = diagnose(about).notes
    assert "`--slowdown 1,2,4`" in slowed
    assert crowded.startswith("3 ranks ran on node, and each may use 2 cores")
    assert "over only 4 steps" in few
    assert diagnose(situation()).notes == ()


@pytest.mark.parametrize("about", [None, situation((0.0, 0.0), exchange=0.0)])
def test_nothing_is_known(about):
    assert causes(about) == ["unknown"]
