"""Being asked to end early: a batch system's signal before the time limit, or SIGTERM."""

import signal
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

EXIT_CODE = 75
"""How a run ends that was asked to and can be resumed (EX_TEMPFAIL of sysexits.h)."""

_received: list[str] = []
_heeded_early: dict[str, Any] = {}
"""By signal: how it was handled before."""


def heed_early() -> None:
    """Note SIGUSR1 and SIGUSR2 from now on, which would end a process that does not listen.

    Called before torch is imported, which takes many seconds on a slow node. Those that no run
    asks for do what they did before once it begins.
    """
    for name in ("USR1", "USR2"):
        _heeded_early[name] = signal.signal(signal.Signals[f"SIG{name}"], _note)


class Interruption:
    """While it is entered, notes the signals of these *names* (``USR2``) instead of dying of them.

    Entered in another thread than the main one, it does nothing: Python gives signals to that.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(dict.fromkeys(names))
        self._before: dict[str, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether one of the signals has come."""
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
    """Give signals that were heeded early to their former *handlers*, those received included."""
    for name, handler in handlers.items():
        number = signal.Signals[f"SIG{name}"]
        signal.signal(number, handler)
        del _heeded_early[name]
        if name in _received:
            signal.raise_signal(number)


def _note(number: int, frame: FrameType | None) -> None:
    _received.append(signal.Signals(number).name.removeprefix("SIG"))
