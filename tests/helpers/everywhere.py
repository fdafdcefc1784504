"""What must be alike on every rank: a folder, a result, a refusal."""

from pathlib import Path

from helpers.planning import world
from hetmp.cluster import AgreedError
from hetmp.run.config import train_config
from hetmp.run.train import train

STEPS = 3


DIGITS = {"model": "digits", "data": "digits", "dtype": "float64", "steps": STEPS, "device": "cpu"}


def folder(tmp_path: Path) -> Path:
    """Rank 0's folder, on every rank."""
    return Path(world().bcast(str(tmp_path)))


def same_everywhere(result) -> None:
    assert len({repr(other) for other in world().allgather(result)}) == 1


def refused_everywhere(message: str, **values) -> None:
    """Every rank raises the same."""
    told = None
    try:
        train(train_config(**(DIGITS | values)))
    except AgreedError as error:
        told = str(error)
    assert set(world().allgather(told)) == {told}
    assert told is not None and message in told
