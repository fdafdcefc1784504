"""Tables of a profile and of a plan for a terminal."""

from collections.abc import Sequence

import numpy as np
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from hetmp.core.text import bytes_text
from hetmp.planner.link_model import LinkModel
from hetmp.planner.planner import Planned
from hetmp.planner.profiling import Profile
from hetmp.slicing.plan import LayerPlan

WIDE = 6
"""Most ranks whose figures a layer shows one by one; more are shown as a range."""


def render_plan(planned: Planned, *, narrow: bool = False) -> RenderableType:
    """Make tables of a plan's layers and ranks, and compare its time with other splits.

    Args:
        narrow: leave out each rank's waiting at each layer.
    """
    return Lines(_layers(planned, narrow), Text(), _ranks(planned), Text(), *_summary(planned))


def render_profile(profile: Profile) -> RenderableType:
    """Make tables of a profile's devices and links."""
    devices = _table("Devices")
    for heading in ("rank", "host", "device", "free memory", "works"):
        devices.add_column(heading, justify="right" if heading in ("rank", "works") else "left")
    for rank, device in enumerate(profile.devices):
        devices.add_row(
            str(rank),
            device.host,
            device.title,
            bytes_text(device.memory) if device.memory else "unknown",
            str(len(device.works)),
        )
    parts: list[RenderableType] = [devices]
    everyone = tuple(range(len(profile.devices)))
    for ranks in dict.fromkeys(link.ranks or everyone for link in profile.links):
        parts += [Text(), _links(profile, ranks)]
    return Lines(*parts)


def _links(profile: Profile, ranks: tuple[int, ...]) -> RichTable:
    """Make a table of the links that were measured between *ranks*."""
    model = LinkModel(profile)
    links, extent = model.between(ranks), model.extent(ranks)
    which = f"the {len(ranks)} ranks" if len(ranks) == len(profile.devices) else _names(ranks)
    where = f", {extent.hosts} hosts" if extent.crosses_network else ""
    where = ", one host" if extent.hosts == 1 else where
    table = _table(f"Links between {which}{where}, equal shares")
    measured = sorted({size for link in profile.links for size in link.bytes})
    sizes = [measured[0], measured[len(measured) // 2], measured[-1]]
    for heading in ("exchange", *map(bytes_text, sizes)):
        table.add_column(heading, justify="left" if heading == "exchange" else "right")
    for name in dict.fromkeys(link.collective for link in profile.links):
        seconds = (links.seconds(name, size, 1 / len(ranks)) for size in sizes)
        table.add_row(name, *(_time(value) for value in seconds))
    return table


def _names(ranks: Sequence[int]) -> str:
    """Write which ranks, those of a large set by its ends."""
    if len(ranks) <= WIDE:
        return f"ranks {', '.join(map(str, ranks))}"
    return f"{len(ranks)} ranks from {ranks[0]} to {ranks[-1]}"


def _layers(planned: Planned, narrow: bool) -> RichTable:
    plan, prediction = planned.plan.of_members(), planned.prediction
    ranks = f"rank{'s' if plan.ranks > 1 else ''}"
    table = _table(f"Layers, over {plan.ranks} {ranks}; times with the work behind each layer")
    schemes = {layer.scheme for layer in plan.layers} != {"filters"}
    headings = ["layer", "channels", *(["scheme"] if schemes else []), "compute, ms"]
    headings += ["exchange, ms", *([] if narrow else ["idle, ms"])]
    for heading in headings:
        text = heading in ("layer", "channels", "scheme")
        table.add_column(heading, justify="left" if text else "right", overflow="fold")
    shown = {layer.name: layer for layer in plan.layers}
    for name, layer in prediction.layers.items():
        entry = shown.get(name)
        cells = [name or "(input)", "" if entry is None else _shares(entry)]
        cells += [entry.scheme if entry else ""] if schemes else []
        cells += [_milliseconds(layer.compute), f"{1e3 * layer.exchange:.1f}"]
        table.add_row(*cells, *([] if narrow else [_milliseconds(layer.idle)]))
    return table


def _ranks(planned: Planned) -> RichTable:
    table = _table("Ranks")
    for heading in ("rank", "device", "share", "compute, ms", "idle, ms", "memory"):
        right = heading not in ("device",)
        table.add_column(heading, justify="right" if right else "left")
    plan, prediction = planned.plan, planned.prediction
    nothing = np.zeros(len(plan.members))
    compute = sum((layer.compute for layer in prediction.layers.values()), start=nothing)
    idle = sum((layer.idle for layer in prediction.layers.values()), start=nothing)
    total = sum(layer.channels for layer in plan.layers if layer.shares) or 1
    for rank in range(plan.ranks):
        device = plan.devices[rank] if plan.devices else ""
        if rank in planned.left_out:
            table.add_row(str(rank), device, "left out", style="dim")
            continue
        i = plan.members.index(rank)
        held = sum(layer.shares[rank] for layer in plan.layers if layer.shares)
        table.add_row(
            str(rank),
            device,
            f"{100 * held / total:.0f} %",
            f"{1e3 * compute[i]:.0f}",
            f"{1e3 * idle[i]:.0f}",
            bytes_text(float(prediction.memory[i])),
        )
    return table


def _summary(planned: Planned) -> list[Text]:
    seconds = planned.prediction.seconds
    lines = [Text(f"predicted time of a step: {_time(seconds)}", style="bold")]
    for name, other in planned.alternatives.items():
        ratio = other / seconds
        compared = f"{ratio:.2f} times this" if ratio >= 1 else f"{ratio:.2f} of this, faster"
        lines.append(Text(f"  {name}: {_time(other)}, {compared}"))
    data_parallel = planned.alternatives.get("weighted data parallelism")
    if data_parallel is not None and data_parallel < seconds:
        lines.append(
            Text(
                "  data parallelism with batches by speed would be faster, if every rank can hold "
                "a copy of the model",
                style="yellow",
            )
        )
    for rank, why in sorted(planned.left_out.items()):
        lines.append(Text(f"rank {rank} is left out: {why}", style="yellow"))
    return lines


def _shares(layer: LayerPlan) -> str:
    """Write what each rank has of a layer: channels, or percent of the images."""
    if layer.cuts_batch:
        percents = [round(100 * weight / sum(layer.weights)) for weight in layer.weights]
        return f"{_each(percents, '/')} % of images"
    return _each(layer.counts, "/") if layer.is_cut else "all"


def _each(counts: Sequence[int], separator: str) -> str:
    if len(counts) <= WIDE:
        return separator.join(map(str, counts))
    return f"{min(counts)} to {max(counts)}"


def _milliseconds(seconds: np.ndarray) -> str:
    if len(seconds) <= WIDE:
        return " / ".join(f"{1e3 * value:.1f}" for value in seconds)
    return f"{1e3 * seconds.min():.1f} to {1e3 * seconds.max():.1f}"


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} µs"
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _table(title: str) -> RichTable:
    return RichTable(
        box=None, title=title, title_justify="left", padding=(0, 2, 0, 0), header_style="bold"
    )
