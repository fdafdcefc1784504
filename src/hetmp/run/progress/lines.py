"""The progress of a run in one line."""

import time
from collections.abc import Mapping, Sequence

from hetmp.run.progress.status import Standing

_DOING = {"compute": "computes", "exchange": "exchanges", "waiting": "waits", "reading": "reads"}


def epoch_line(standing: Standing) -> str:
    """Return the line after an evaluation, with the images per second of the steps before it."""
    accuracy = 100 * (standing.test or 0.0)
    return _line(standing, f"test {accuracy:5.2f} %", standing.images_per_second_of_epoch)


def step_line(standing: Standing) -> str:
    """Return the line within an epoch, with the recent images per second."""
    rate = standing.recent_images_per_second
    return _line(standing, f"batch {100 * standing.accuracy:5.2f} %", rate)


def waiting_line(by_rank: Mapping[str, Sequence[float]]) -> str:
    """Return how the rank that waits most spends its time, in percent; empty if not of interest.

    Args:
        by_rank: seconds by kind and rank.
    """
    ranks = len(next(iter(by_rank.values()), ()))
    if ranks == 0:
        return ""
    rank = max(range(ranks), key=lambda r: by_rank["waiting"][r])
    seconds = {kind: times[rank] for kind, times in by_rank.items()}
    whole = max(1e-9, sum(seconds.values()))
    shares = {kind: round(100 * spent / whole) for kind, spent in seconds.items()}
    if ranks == 1 and not shares["reading"]:
        return ""
    doing = ", ".join(f"{_DOING[kind]} {share} %" for kind, share in shares.items() if share)
    return f"rank {rank} {doing}"


def stamped(text: str) -> str:
    """Put the local time in front of each line of *text*."""
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    return "\n".join(f"{now}  {line}".rstrip() for line in text.splitlines())


def clock_text(seconds: float | None) -> str:
    """Format seconds: ``0:07``, ``12:30``, ``30:00:05``; a question mark for None."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
    )


def rate_text(images_per_second: float) -> str:
    """Format a rate: ``1758 images/s``, ``0.4 images/s``."""
    digits = 0 if images_per_second >= 9.95 else 1
    return f"{images_per_second:.{digits}f} images/s"


def _line(standing: Standing, accuracy: str, rate: float) -> str:
    return (
        f"epoch {standing.epoch + 1:3}  step {standing.step:5}/{standing.run.steps}  "
        f"loss {standing.loss:.4f}  {accuracy}  {rate_text(rate):>15}  "
        f"{clock_text(standing.left)} left"
    )
