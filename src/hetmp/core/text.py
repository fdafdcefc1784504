"""Figures as a person reads them."""


def bytes_text(size: float) -> str:
    """``500 bytes``, ``86 MiB``, ``7.3 GiB``."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def count_ranks(count: int) -> str:
    """``1 rank``, ``3 ranks``."""
    return f"{count} rank" + ("s" if count != 1 else "")
