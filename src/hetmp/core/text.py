"""Figures formatted for people."""


def bytes_text(size: float) -> str:
    """Format a number of bytes: ``500 bytes``, ``86 MiB``, ``7.3 GiB``."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def count_ranks(count: int) -> str:
    """Format a number of ranks: ``1 rank``, ``3 ranks``."""
    return f"{count} rank" + ("s" if count != 1 else "")
