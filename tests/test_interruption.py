"""A run that is asked to end saves a checkpoint, and goes on from there as if it had not ended."""

import json
import os
import signal
import subprocess
import threading
import time

import numpy as np
import pytest

from helpers.running import HERE, TRAIN, environment
from helpers.saving import shared, uneven, world
from hetmp.run import stop_signals as interruption
from hetmp.run.config import train_config
from hetmp.run.stop_signals import EXIT_CODE, Interruption, heed_early

MPIRUN = HERE.parent / "jobs" / "mpirun.sh"


# --- signals --------------------------------------------------------------------------------------


@pytest.fixture
def handled():
    """Signals that came, by name; afterwards all is as it was."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    came = []
    for number in before:
        signal.signal(number, lambda number, frame: came.append(signal.Signals(number).name[3:]))
    yield came
    for number, handler in before.items():
        signal.signal(number, handler)
    interruption._received.clear()
    interruption._heeded_early.clear()


def test_a_signal_is_noted_while_it_is_heeded(handled):
    with Interruption(("USR2", "USR2")) as asked:
        assert not asked.asked
        signal.raise_signal(signal.SIGUSR2)
        assert asked.asked and handled == []
        signal.raise_signal(signal.SIGUSR1)
        assert handled == ["USR1"]
    signal.raise_signal(signal.SIGUSR2)
    assert handled == ["USR1", "USR2"]


def test_another_run_was_not_asked(handled):
    with Interruption(("USR2",)):
        signal.raise_signal(signal.SIGUSR2)
    with Interruption(("USR2",)) as second:
        assert not second.asked


def test_another_signal_does_not_ask(handled):
    with Interruption(("USR1",)), Interruption(("USR2",)) as asked:
        signal.raise_signal(signal.SIGUSR1)
        assert not asked.asked


def test_a_signal_that_came_early_asks(handled):
    heed_early()
    signal.raise_signal(signal.SIGUSR2)
    with Interruption(("USR2", "TERM")) as asked:
        assert asked.asked
    assert handled == []


def test_a_signal_that_came_early_and_is_not_heeded_does_what_it_did_before(handled):
    heed_early()
    signal.raise_signal(signal.SIGUSR1)
    assert handled == []
    with Interruption(("USR2",)) as asked:
        assert not asked.asked and handled == ["USR1"]
        signal.raise_signal(signal.SIGUSR1)
        assert handled == ["USR1", "USR1"]
    with Interruption(()):
        signal.raise_signal(signal.SIGUSR2)
        assert handled == ["USR1", "USR1", "USR2"]


def test_another_thread_heeds_nothing(handled):
    def run():
        with Interruption(("USR2",)):
            before.append(signal.getsignal(signal.SIGUSR2))

    before = [signal.getsignal(signal.SIGUSR2)]
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert before[0] is before[1] is signal.getsignal(signal.SIGUSR2)


# --- a run on several ranks -----------------------------------------------------------------------

EPOCH, STEPS = 15, 30


def config(out, **values):
    return train_config(
        model="digits", data="digits", dtype="float64", batch_size=100, steps=STEPS, out=out,
        weights=uneven(world().size), **values,
    )  # fmt: skip


def told(out, kind):
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == kind]


def curve(out, kind="step"):
    return [(record["step"], record["loss"], record["accuracy"]) for record in told(out, kind)]


@pytest.fixture
def signalled(monkeypatch):
    """Makes one rank send itself a signal in the middle of a step."""
    from hetmp.run.step import TrainStep

    def at(step, rank, name="USR2"):
        taken = []

        def train_step(*given):
            taken.append(None)
            if len(taken) == step and world().rank == rank:
                os.kill(os.getpid(), signal.Signals[f"SIG{name}"])
            return whole_step(*given)

        monkeypatch.setattr(TrainStep, "take", train_step)

    whole_step = TrainStep.take
    yield at
    monkeypatch.undo()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nobody asked to end."""
    from hetmp.run.train import train

    out = shared(tmp_path_factory.mktemp("whole"))
    train(config(out), world())
    world().Barrier()
    return out


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("step", "name"),
    [(4, "USR2"), (EPOCH, "USR2"), (EPOCH + 1, "TERM"), (STEPS - 1, "USR1")],
)
def test_a_run_goes_on_as_if_it_had_not_been_stopped(tmp_path, whole, signalled, step, name):
    from hetmp.run.train import train

    out = shared(tmp_path)
    chosen = {"stop_signal": name} if name != "TERM" else {}
    signalled(step, rank=world().size - 1, name=name)
    stopped = train(config(out, **chosen), world())
    assert stopped.stopped and stopped.steps == step
    world().Barrier()
    saved = sorted(file.name for file in (out / "checkpoints").iterdir())
    assert saved == ["latest.h5", f"step-{step:08}.h5"]
    assert not (out / "model.h5").exists()
    # Where an epoch had ended, it was evaluated.
    assert [record["step"] for record in told(out, "evaluation")] == [EPOCH] * (step >= EPOCH)
    assert [record["steps"] for record in told(out, "stopped")] == [step]
    assert told(out, "end") == []
    world().Barrier()
    signalled(0, rank=0)
    resumed = train(config(out, resume="auto", **chosen), world())
    assert not resumed.stopped and resumed.steps == STEPS
    world().Barrier()
    for kind in ("step", "evaluation"):
        np.testing.assert_allclose(curve(out, kind), curve(whole, kind), rtol=1e-12)
    assert [record["resumed"] for record in told(out, "run")] == [0, step]
    assert told(out, "stopped") == [] and len(told(out, "end")) == 1


@pytest.mark.mpi
def test_a_run_that_is_asked_at_its_last_step_just_ends(tmp_path, signalled):
    from hetmp.run.train import train

    out = shared(tmp_path) / "run"
    signalled(STEPS, rank=0)
    result = train(config(out), world())
    assert not result.stopped and result.steps == STEPS
    world().Barrier()
    assert told(out, "stopped") == []
    assert len(told(out, "end")) == 1
    assert not list((out / "checkpoints").glob("*"))
    assert (out / "model.h5").exists()


@pytest.mark.mpi
def test_a_run_that_keeps_nothing_leaves_signals_alone(handled, signalled):
    from hetmp.run.train import train

    signalled(2, rank=world().size - 1)
    result = train(config(None).model_copy(update={"steps": 4}), world())
    assert not result.stopped and result.steps == 4
    assert handled == ["USR2"] * (world().rank == world().size - 1)


# --- the program ----------------------------------------------------------------------------------


@pytest.fixture
def started(tmp_path):
    """A run that is too slow to end, started by jobs/mpirun.sh, once it has taken a step."""
    running = []

    def start(*words, ranks=2):
        printed = tmp_path / "printed"
        with printed.open("w") as file:
            slow = ("--slowdown", ",".join(["50"] * ranks))
            command = [MPIRUN, "-n", str(ranks), *TRAIN, *slow, *words]
            process = subprocess.Popen(
                command, stdout=file, stderr=file, env=environment(), cwd=HERE
            )
            running.append(process)
        return process, printed

    yield start
    for process in running:
        if process.poll() is None:
            process.terminate()
            process.wait(30)


def wait_for(what, process, printed):
    deadline = time.monotonic() + 120
    while not what():
        assert process.poll() is None, printed.read_text()
        assert time.monotonic() < deadline, printed.read_text()
        time.sleep(0.05)


def test_mpirun_sh_passes_a_signal_on_and_ends_with_75(tmp_path, started):
    out = tmp_path / "a run"
    process, printed = started("--out", out)
    metrics = out / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and '"step"' in metrics.read_text(), process, printed)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(100) == EXIT_CODE == 75, printed.read_text()
    [stopped] = told(out, "stopped")
    assert (out / "checkpoints" / f"step-{stopped['steps']:08}.h5").exists()
    assert printed.read_text().count(f"stopped after step {stopped['steps']} by a signal") == 1


def test_a_run_that_keeps_nothing_dies_of_the_signal_as_any_program(started):
    process, printed = started(ranks=1)
    wait_for(lambda: "1 rank with" in printed.read_text(), process, printed)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(100) not in (0, EXIT_CODE), printed.read_text()
