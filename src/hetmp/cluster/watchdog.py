"""Ends a job in which a rank waits in an exchange for ever, in words of every rank that waits.

A rank that leaves its loop early, or ends, leaves the others in a collective that no one else
enters. MPI has no limit for that. One thread a process looks about every second whether the
exchange in which the rank was is still the same. It calls no MPI but the last one, ``Abort``.
"""

import atexit
import faulthandler
import math
import os
import sys
import threading
import time
import weakref
from pathlib import Path

from hetmp.cluster.mpi import mpi
from hetmp.cluster.recorder import ALIKE, ENDED, Entry, ExchangeRecorder
from hetmp.core.errors import HetmpError, grace_seconds

HANG_SECONDS = 300.0
"""Default of ``hang_seconds``."""

LOOK_SECONDS = 1.0
"""Seconds between two looks, at most."""

LAST_SECONDS = 10
"""Seconds after which a process whose ``Abort`` does not come back ends itself."""

_PACKAGE = str(Path(__file__).resolve().parents[1])

_watched: list["weakref.ref[ExchangeRecorder]"] = []
"""The recorders that the process's one thread looks at."""


def hang_seconds() -> float:
    """Return how long a rank may wait in an exchange before it ends the job; 0 for ever.

    Raises:
        HetmpError: ``HETMP_HANG_SECONDS`` is not a number of seconds.
    """
    text = os.environ.get("HETMP_HANG_SECONDS", "")
    try:
        seconds = float(text or HANG_SECONDS)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise HetmpError(
            f"HETMP_HANG_SECONDS={text} is not a number of seconds: set it to how long a rank may "
            f"wait for the others in an exchange (default {HANG_SECONDS:.0f}), or to 0 for ever"
        )
    return seconds


def watch(recorder: ExchangeRecorder) -> None:
    """Look after *recorder*'s rank from now on.

    Raises:
        HetmpError: see ``hang_seconds``.
    """
    limit = hang_seconds()
    if not _watched:
        atexit.register(_say_ended)
        if limit:
            thread = threading.Thread(target=_look, args=(limit,), name="hetmp-hang", daemon=True)
            thread.start()
    _watched.append(weakref.ref(recorder))


def _look(limit: float) -> None:
    """Look every now and then, and end the job when a rank has waited for *limit* seconds.

    Only the time in which this thread ran counts, so that a job may be suspended and resumed.
    """
    pause = min(LOOK_SECONDS, limit / 4)
    waited: dict[ExchangeRecorder, tuple[int, float]] = {}
    before = time.monotonic()
    while True:
        time.sleep(pause)
        now = time.monotonic()
        passed, before = min(now - before, 2 * pause), now
        earlier, waited = waited, {}
        for reference in list(_watched):
            recorder = reference()
            if recorder is None or (entry := recorder.inside) is None:
                continue
            turn, seconds = earlier.get(recorder, (recorder.turn, 0.0))
            seconds = seconds + passed if turn == recorder.turn else 0.0
            waited[recorder] = recorder.turn, seconds
            if seconds >= limit:
                _end(recorder, entry, limit)


def _end(recorder: ExchangeRecorder, entry: Entry, limit: float) -> None:
    """Say where this rank waits, give the others time to say so, too, and end the job."""
    line = _line_of_user()
    sys.stderr.write(
        f"hetmp: error: {recorder.who} has waited {limit:g} s in exchange {entry}"
        f"{f' ({line})' if line else ''}; before it: {recorder.before(entry)}; "
        f"{recorder.others() or 'ranks that say nothing here are in no exchange; '}{ALIKE}; where "
        "a rank may need longer, set HETMP_HANG_SECONDS to more seconds, or to 0 to wait for ever\n"
    )
    sys.stderr.flush()
    time.sleep(max(2 * LOOK_SECONDS, grace_seconds()))
    # Needs no interpreter lock, which Abort may hold.
    faulthandler.dump_traceback_later(LAST_SECONDS, exit=True, file=open(os.devnull, "w"))  # noqa: SIM115
    mpi().COMM_WORLD.Abort(1)
    os._exit(1)


def _line_of_user() -> str:
    """Return where the user's program is: the innermost line that is of no library."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        file = frame.f_code.co_filename
        ours = file.startswith(_PACKAGE) or name in ("torch", "mpi4py")
        if not ours and name not in sys.stdlib_module_names:
            return f"{file}, line {frame.f_lineno}"
        frame = frame.f_back
    return ""


def _say_ended() -> None:
    """Let the other ranks see that this rank's program has ended."""
    for reference in _watched:
        recorder = reference()
        if recorder is not None:
            recorder.publish(ENDED)
