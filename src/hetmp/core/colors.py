"""The colours of pictures: those of Okabe and Ito, which people who confuse colours tell apart."""

ORANGE, SKY, GREEN = "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#8A8A8A"

SERIES = GREEN, VERMILLION, SKY, PURPLE, BLUE, ORANGE
"""Of runs and ranks, by their numbers."""

_SHADES = (0, 34, 78), (87, 93, 109), (165, 156, 116), (254, 232, 56)
"""Points on a way from dark to light, as red, green and blue."""


def rank_colors(count: int) -> list[str]:
    """Return a colour for each of *count* ranks; many go from dark to light, in rank order.

    >>> rank_colors(2), rank_colors(7)[0], rank_colors(7)[6]
    (['#009E73', '#D55E00'], '#00224e', '#fee838')
    """
    if count <= len(SERIES):
        return list(SERIES[:count])
    return [_shade(rank / (count - 1)) for rank in range(count)]


def _shade(place: float) -> str:
    """Return the colour at *place*, from 0 (dark) to 1 (light)."""
    first = min(int(place * (len(_SHADES) - 1)), len(_SHADES) - 2)
    part = place * (len(_SHADES) - 1) - first
    pairs = zip(_SHADES[first], _SHADES[first + 1], strict=True)
    return "#" + "".join(f"{round(a + part * (b - a)):02x}" for a, b in pairs)
