"""Write the report's files: each beside its place and then renamed, the page last."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from hetmp.core.errors import HetmpError
from hetmp.core.files import replacing
from hetmp.tools.report.page import pictures_beside

PAGE = "report.html"


def write(folder: Path, page: str, pictures: Mapping[str, bytes]) -> Path:
    """Write the page and the pictures beside it; replace an older report in *folder*.

    Args:
        page: the HTML.
        pictures: PNG data by name.

    Returns:
        The page's path.

    Raises:
        HetmpError: the folder or a file cannot be written; an older report then stays, except
            perhaps for some pictures.
    """
    # The page first: what is entered first takes its place last.
    files = {PAGE: page.encode()} | {f"{name}.png": data for name, data in pictures.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        older = _older(folder / PAGE)
        with ExitStack() as complete:
            for name, data in files.items():
                complete.enter_context(replacing(folder / name)).write_bytes(data)
        for name in older - files.keys():
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise HetmpError(
            f"the report cannot be written to {folder}: {error.strerror or error}; choose another "
            "folder with --out"
        ) from None
    return folder / PAGE


def _older(page: Path) -> set[str]:
    """Return the file names of an older report's pictures."""
    try:
        return set(pictures_beside(page.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError):
        return set()
