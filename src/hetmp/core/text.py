"""Figures formatted for people."""

import math

NONE = "–"
"""Stands for a missing figure."""


def count_ranks(count: int) -> str:
    """Format a number of ranks: ``1 rank``, ``3 ranks``."""
    return f"{count} rank" + ("s" if count != 1 else "")


def digits(value: float, count: int = 3) -> str:
    """Format *value* with *count* significant digits.

    >>> digits(1234.5), digits(12.345), digits(0.012345), digits(0.0), digits(1.2345e-9)
    ('1,234', '12.3', '0.0123', '0', '1.23e-09')
    """
    if not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.{count - 1}e}"
    return f"{value:,.{max(0, count - 1 - math.floor(math.log10(abs(value))))}f}"


def trimmed(value: float) -> str:
    """Format *value* with three significant digits, without trailing zeros of a fraction.

    >>> trimmed(16.0), trimmed(2.5)
    ('16', '2.5')
    """
    text = digits(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def bytes_text(size: float) -> str:
    """Format a number of bytes: ``512 bytes``, ``1.5 KiB``, ``86 MiB``.

    >>> bytes_text(512), bytes_text(1536), bytes_text(86 * 2**20)
    ('512 bytes', '1.5 KiB', '86 MiB')
    """
    if not math.isfinite(size):
        return NONE
    if size < 1024:
        return f"{size:.0f} bytes"
    units = ("KiB", "MiB", "GiB", "TiB")
    power = min(len(units), int(math.log2(size) // 10))
    return f"{trimmed(size / 1024**power)} {units[power - 1]}"
