"""Saves at once, or in the background: a thread writes a copy while the next steps run."""

import threading
from collections.abc import Callable
from pathlib import Path

from hetmp.checkpoint.write import Contents, WriterName, write
from hetmp.cluster import Group


class Saver:
    """Writer of a group's checkpoints, one at a time.

    Args:
        group: of the model.
        behind: return once the contents are copied, and write them in a thread. The copy takes
            the memory of this rank's parameters, buffers and optimizer state.
        writer: see ``write``.

    Raises:
        HetmpError: *behind*, and MPI allows one thread at a time.
    """

    def __init__(self, group: Group, *, behind: bool = False, writer: WriterName = "auto") -> None:
        self.group = group
        self._behind = group.behind() if behind else None
        self._writer: WriterName = writer
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, path: Path, contents: Contents, written: Callable[[], None]) -> None:
        """Write *contents* to *path*; then rank 0 calls *written*. Collective.

        Raises:
            HetmpError: on every rank: this one could not be written, or the one before.
        """
        self.wait()
        if self._behind is None:
            _write(self.group, path, contents, self._writer, written)
            return
        copy, group = contents.copied(), self._behind

        def run() -> None:
            try:
                _write(group, path, copy, self._writer, written)
            except Exception as error:  # raised by the next wait()
                self._error = error

        self._thread = threading.Thread(target=run, name="hetmp checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the checkpoint being written is complete. Collective.

        Raises:
            HetmpError: on every rank, if it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error


def _write(
    group: Group, path: Path, contents: Contents, writer: WriterName, written: Callable[[], None]
) -> None:
    write(group, path, contents, writer)
    with group.together():
        if group.is_root:
            written()
