"""Files that appear under their name only when they are complete."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, contended: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside *path*; when the block ends, the file replaces *path*.

    If the block or the renaming raises, *path* stays as it was and the temporary file is removed.
    If *path* is a symlink, its target is replaced and the link kept. If *path* exists and is not a
    regular file (``/dev/stdout``), it cannot be replaced: *path* itself is yielded.

    Args:
        contended: whether other processes may write the same file: each then has a temporary file
            of its own, and the last complete one stays.

    Raises:
        OSError: the file cannot replace *path*.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    path = Path(os.path.realpath(path))  # which a link to itself does not stop
    name = f"{path.name}.{uuid.uuid4().hex}" if contended else path.name
    beside = path.with_name(f".{name}.part")
    try:
        yield beside
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # if the folder does not exist, neither does the file
            beside.unlink(missing_ok=True)
        raise
