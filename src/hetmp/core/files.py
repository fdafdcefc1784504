"""Files that stand under their name only when they are complete."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, contended: bool = False) -> Iterator[Path]:
    """A file to write beside *path*, which takes its place when the block ends.

    Where the block or the renaming raises, what stood under the name stands, and the file beside
    it is gone. A link stays one, to the new file. What is no file (``/dev/stdout``) cannot be
    replaced: it is *path* itself that is given then.

    Args:
        contended: other processes may be writing the same file: each then has one of its own, of
            which the last that is complete stays.

    Raises:
        OSError: it cannot take the place.
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
        with contextlib.suppress(OSError):  # where the folder is none, neither is this
            beside.unlink(missing_ok=True)
        raise
