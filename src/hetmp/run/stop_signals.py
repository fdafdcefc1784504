"""Signals that ask a run to end early: a batch system's before the time limit, or SIGTERM."""

import signal
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

EXIT_CODE = 75
"""Exit code of a run that a signal ended and that can be resumed (EX_TEMPFAIL)."""

_received: list[str] = []
_heeded_early: dict[str, Any] = {}
"""Former handlers, by signal."""


def heed_early() -> None:
    """Record SIGUSR1 and SIGUSR2 from now on, instead of letting them end the process.

    Call it before torch is imported, which takes many seconds on a slow node. When a run begins,
    signals that it does not use get their former handlers back.
    """
    for name in ("USR1", "USR2"):
        _heeded_early[name] = signal.signal(signal.Signals[f"SIG{name}"], _note)


class Interruption:
    """A context that records signals of these *names* (``USR2``) instead of letting them kill.

    Does nothing outside the main thread, the only one Python delivers signals to.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(dict.fromkeys(names))
        self._before: dict[str, Any] = {}

    @property
    def asked(self) -> bool:
        """Return whether one of the signals has arrived."""
        return any(name in _received for name in self._names)

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for name in self._names:
                self._before[name] = signal.signal(signal.Signals[f"SIG{name}"], _note)
            _give_up({name: _heeded_early[name] for name in _heeded_early.keys() - {*self._names}})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, handler in self._before.items():
            signal.signal(signal.Signals[f"SIG{name}"], handler)
        _received[:] = [name for name in _received if name not in self._names]


def _give_up(handlers: dict[str, Any]) -> None:
    """Restore the former *handlers* of signals recorded early, and raise those received again."""
    for name, handler in handlers.items():
        number = signal.Signals[f"SIG{name}"]
        signal.signal(number, handler)
        del _heeded_early[name]
        if name in _received:
            signal.raise_signal(number)


def _note(number: int, frame: FrameType | None) -> None:
    _received.append(signal.Signals(number).name.removeprefix("SIG"))
