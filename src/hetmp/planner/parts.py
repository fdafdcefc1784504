"""Divide a plan's layers into parts that a reader can take in, each of one scheme."""

from collections.abc import Sequence
from itertools import groupby, takewhile

from hetmp.ops import SCHEMES, SchemeName
from hetmp.slicing.plan import LayerPlan, Plan

ROWS = 24
"""Most parts of a plan."""

WORK = 12_000
"""Most layers to predict, over all steps that are predicted for the parts: some seconds."""

PER_PART = 6
"""About how many steps are predicted for a part."""


def parts(plan: Plan) -> list[tuple[str, ...]]:
    """Divide a plan's layers into parts with one scheme each, as short ones as may be.

    A part is a layer; in a longer network, the neighbours of one scheme in a block; in the longest,
    all neighbours of one scheme, or else all layers of one scheme.

    Returns:
        The paths of each part's layers, in order.
    """
    most = min(ROWS, max(len(SCHEMES), WORK // PER_PART // max(1, len(plan.layers))))
    deepest = max((layer.name.count(".") + 1 for layer in plan.layers), default=0)
    for depth in range(deepest, -1, -1):
        blocks = _blocks(plan, depth)
        if len(blocks) <= most:
            return blocks
    by_scheme: dict[SchemeName, list[str]] = {}
    for layer in plan.layers:
        by_scheme.setdefault(layer.scheme, []).append(layer.name)
    return [tuple(names) for names in by_scheme.values()]


def part_title(part: Sequence[str], names: Sequence[str]) -> str:
    """Name a part of the layers *names*: by its block if it is all of that, else from where to
    where it goes.

    >>> names = ["conv", "layer1.0", "layer1.1", "layer2.0", "fc"]
    >>> part_title(["fc"], names), part_title(names[1:3], names), part_title(names[2:4], names)
    ('fc', 'layer1, 2 layers', 'layer1.1 to layer2.0')
    >>> part_title(names[:4], names), part_title(["conv", "layer1.1"], names)
    ('conv to layer2.0, 4 layers', '2 layers, conv the first')
    """
    if len(part) == 1:
        return part[0]
    block = _common(part)
    if len(part) == len(names):
        return f"all {len(names)} layers"
    if block and [name for name in names if f"{name}.".startswith(block)] == list(part):
        return f"{block[:-1]}, {len(part)} layers"
    first = list(names).index(part[0])
    if list(names[first : first + len(part)]) == list(part):
        return from_to(part) + (f", {len(part)} layers" if len(part) > 2 else "")
    return f"{len(part)} layers, {part[0]} the first"


def from_to(part: Sequence[str]) -> str:
    """Write the first and the last of layers.

    >>> from_to(["features.conv1", "features.conv2"]), from_to(["layer1.0.conv2", "layer1.1.conv1"])
    ('features.conv1 to conv2', 'layer1.0.conv2 to layer1.1.conv1')
    """
    last = part[-1].removeprefix(_common(part))
    return f"{part[0]} to {part[-1] if '.' in last else last}"


def _common(part: Sequence[str]) -> str:
    """Return the path of the smallest block with all layers of *part*, with a dot behind it."""
    pairs = zip(min(part).split("."), max(part).split("."), strict=False)
    same = takewhile(lambda pair: pair[0] == pair[1], pairs)
    return "".join(f"{step}." for step, _ in same)


def _blocks(plan: Plan, depth: int) -> list[tuple[str, ...]]:
    """Join neighbours of one scheme whose paths begin with the same *depth* names."""

    def block(layer: LayerPlan) -> tuple[SchemeName, list[str]]:
        return layer.scheme, layer.name.split(".")[:depth]

    return [tuple(layer.name for layer in run) for _, run in groupby(plan.layers, block)]
