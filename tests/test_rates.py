"""The learning rate over a run, beside torch's schedulers."""

import json
import math

import pytest
import torch
from torch.optim import lr_scheduler

from hetmp.core.errors import HetmpError
from hetmp.optim import SCHEDULES, make_schedule, rate
from hetmp.optim.schedules import _FACTORS

STEPS = (1, 2, 3, 10, 17)

TORCHS = {
    "constant": (lambda o, n: lr_scheduler.ConstantLR(o, factor=1.0), {}),
    "cosine": (lambda o, n: lr_scheduler.CosineAnnealingLR(o, T_max=n), {}),
    "exponential": (lambda o, n: lr_scheduler.ExponentialLR(o, 0.9), {"gamma": 0.9}),
    "linear": (lambda o, n: lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=n), {}),
    "milestones": (
        lambda o, n: lr_scheduler.MultiStepLR(o, [2, 5], 0.5),
        {"milestones": [2, 5], "gamma": 0.5},
    ),
    "polynomial": (lambda o, n: lr_scheduler.PolynomialLR(o, n, power=2.0), {"power": 2.0}),
    "step": (lambda o, n: lr_scheduler.StepLR(o, max(1, math.ceil(n / 3)), gamma=0.1), {}),
}


def optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates or (0.3,)]
    )


def rates_of(scheduler, steps: int) -> list[list[float]]:
    """Of every group at every step, and after the last."""
    rows = []
    for _ in range(steps + 1):
        rows.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return rows


def test_every_schedule_is_tried_here():
    assert {*TORCHS, "onecycle"} == set(SCHEDULES)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("schedule", TORCHS)
def test_schedules_are_torchs(schedule, steps):
    make, settings = TORCHS[schedule]
    mine = rates_of(make_schedule(optimizer(0.3, 0.02), schedule, steps, **settings), steps)
    assert mine == [
        pytest.approx(row, rel=1e-12, abs=1e-12)
        for row in rates_of(make(optimizer(0.3, 0.02), steps), steps)
    ]
    assert [row[0] for row in mine] == [
        0.3 * rate(schedule, step, steps, **settings) for step in range(steps + 1)
    ]


@pytest.mark.parametrize("steps", [5, 10, 33])
def test_onecycle_is_torchs(steps):
    torchs = lr_scheduler.OneCycleLR(optimizer(), 0.3, total_steps=steps, cycle_momentum=False)
    expected = [torchs.get_last_lr()[0]]
    for _ in range(steps - 1):
        torchs.optimizer.step()
        torchs.step()
        expected += torchs.get_last_lr()
    mine = [0.3 * rate("onecycle", step, steps) for step in range(steps)]
    assert mine == pytest.approx(expected, rel=1e-10)
    assert rate("onecycle", steps + 3, steps) == pytest.approx(1 / 25 / 1e4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_warm_up_comes_first(schedule):
    """Evenly up to the schedule's beginning, and then the schedule over the steps that are left."""
    settings = TORCHS[schedule][1] if schedule in TORCHS else {}
    factors = [rate(schedule, step, 12, warmup=4, **settings) for step in range(13)]
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    if schedule == "milestones":
        assert factors[4:7] == [0.5, 0.25, 0.25]  # steps of the run, the warm-up's included
    else:
        assert factors[4:] == [rate(schedule, step, 8, **settings) for step in range(9)]


def test_a_run_that_only_warms_up():
    assert [rate("cosine", step, 2, warmup=2) for step in range(3)] == pytest.approx(
        [1 / 3, 2 / 3, 1]
    )


@pytest.mark.parametrize("schedule", ["cosine", "linear", "polynomial"])
def test_what_falls_to_zero_stays_there(schedule):
    assert rate(schedule, 10, 10) == rate(schedule, 15, 10) == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_goes_on_from_its_state(schedule):
    """Its state is JSON; a second one that takes it up gives the same rates."""
    settings = TORCHS[schedule][1] if schedule in TORCHS else {}
    whole = rates_of(make_schedule(optimizer(), schedule, 9, 3, **settings), 9)
    first = make_schedule(optimizer(), schedule, 9, 3, **settings)
    rates_of(first, 3)  # four steps
    second = make_schedule(optimizer(), schedule, 9, 3, **settings)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.optimizer.param_groups[0]["lr"] = first.optimizer.param_groups[0]["lr"]
    assert rates_of(second, 5) == whole[4:]


@pytest.mark.parametrize(
    ("schedule", "steps", "warmup", "settings", "told"),
    [
        ("cosin", 9, 0, {}, "unknown schedule 'cosin': did you mean 'cosine'"),
        ("cosine", 0, 0, {}, "over 1 step or more, got 0"),
        ("cosine", 9, 10, {}, "the warm-up is 0 to 9 steps, which is all there are, got 10"),
        ("cosine", 9, -1, {}, "the warm-up is 0 to 9 steps, .* got -1"),
        ("cosine", 9, 0, {"gamma": 0.1}, "the schedule cosine has no settings, got 'gamma'"),
        ("step", 9, 0, {"gama": 0.1}, "setting of the schedule step 'gama': did you mean 'gamma'"),
        ("step", 9, 0, {"gamma": 0}, "schedule step: gamma is a number above 0, got 0"),
        ("step", 9, 0, {"gamma": True}, "gamma is a number above 0, got True"),
        ("step", 9, 0, {"gamma": math.nan}, "gamma is a number above 0, got nan"),
        ("exponential", 9, 0, {}, "the schedule exponential needs gamma, a number above 0"),
        ("milestones", 9, 0, {}, "the schedule milestones needs milestones, a list of steps"),
        ("milestones", 9, 0, {"milestones": 3}, "milestones is a list of steps, got 3"),
        ("milestones", 9, 0, {"milestones": [3.5]}, r"milestones is a list of steps, got \[3.5\]"),
        ("onecycle", 9, 0, {"peak": 1}, "peak is a number between 0 and 1, got 1"),
    ],
)
def test_mistakes_are_told(schedule, steps, warmup, settings, told):
    with pytest.raises(HetmpError, match=told):
        rate(schedule, 0, steps, warmup, **settings)
    with pytest.raises(HetmpError, match=told):
        make_schedule(optimizer(), schedule, steps, warmup, **settings)


def test_the_command_line_knows_every_schedule():
    """It names them itself: on a login node torch is slow to come."""
    assert set(_FACTORS) == set(SCHEDULES)
