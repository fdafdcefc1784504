"""Tables of a profile and of a plan for a terminal."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from hetmp.core.text import bytes_text
from hetmp.planner.link_model import LinkModel
from hetmp.planner.parts import part_title, parts
from hetmp.planner.planner import Planned
from hetmp.planner.profiling import Profile
from hetmp.planner.reasons import reasons
from hetmp.slicing.plan import LayerPlan, Plan

WIDE = 6
"""Most ranks whose figures a layer shows one by one; more are shown as a range."""


def render_plan(planned: Planned, *, width: int = 140) -> RenderableType:
    """Make tables of a plan's layers and ranks, and compare its time with other splits.

    Args:
        width: columns of the terminal; below 100 each rank's waiting at each layer is left out,
            and below 120 what schemes would take that do not come next.
    """
    tables = [_layers(planned, width < 100), _reasons(planned, width < 120), _ranks(planned)]
    spaced = [line for table in tables if table for line in (table, Text())]
    return Lines(*spaced, *_summary(planned))


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
    tables: list[RenderableType] = [devices]
    everyone = tuple(range(len(profile.devices)))
    for ranks in dict.fromkeys(link.ranks or everyone for link in profile.links):
        tables += [Text(), _links(profile, ranks)]
    return Lines(*tables)


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
    names = [layer.name for layer in plan.layers]
    before = [(name,) for name in prediction.layers if name not in names]
    for part in [*before, *parts(plan)]:
        entries = [plan.layer(name) for name in part if name in names]
        layers = [prediction.layers[name] for name in part if name in prediction.layers]
        cells = [part_title(part, names) or "(input)", _shares(entries)]
        cells += [entries[0].scheme if entries else ""] if schemes else []
        cells += [_milliseconds(_sum(layer.compute for layer in layers))]
        cells += [f"{1e3 * sum(layer.exchange for layer in layers):.1f}"]
        idle = _milliseconds(_sum(layer.idle for layer in layers))
        table.add_row(*cells, *([] if narrow else [idle]))
    return table


def _reasons(planned: Planned, narrow: bool) -> RichTable | None:
    """Make a table of why layers follow their schemes; None where they had no choice."""
    names = [layer.name for layer in planned.plan.layers]
    table = _table("Why each layer is cut so: what a step would take if it followed another scheme")
    for heading in ("layer", "scheme", "why"):
        table.add_column(heading, overflow="fold")
    for reason in reasons(planned):
        text = reason.text if narrow or not reason.others else f"{reason.text}; {reason.others}"
        table.add_row(part_title(reason.layers, names), reason.scheme, text)
    return table if table.rows else None


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
        too_large = ", but not enough memory" if name in planned.too_large else ""
        lines.append(Text(f"  {name}: {_time(other)}, {compared}{too_large}"))
    data_parallel = planned.alternatives.get("weighted data parallelism")
    if data_parallel is not None and data_parallel < seconds:
        lines.append(
            Text(
                "  data parallelism with batches by speed would be faster, if every rank can hold "
                "a copy of the model",
                style="yellow",
            )
        )
    lines += _done_again(planned.plan)
    for rank, why in sorted(planned.left_out.items()):
        lines.append(Text(f"rank {rank} is left out: {why}", style="yellow"))
    return lines


def _done_again(plan: Plan) -> Iterator[Text]:
    """Write which layers' inputs the backward pass gathers again, and which layers it computes."""
    names = [layer.name for layer in plan.layers]
    for choice, what in (
        ("regather", "gathers the input again of"),
        ("recompute", "computes again"),
    ):
        layers = [layer.name for layer in plan.layers if layer.backward == choice]
        if layers:
            title = part_title(layers, names)
            yield Text(f"to fit in memory, the backward pass {what}: {title}", style="yellow")


def _shares(layers: Sequence[LayerPlan]) -> str:
    """Write what each rank has of layers of one scheme: channels, or percent of the images."""
    if not layers or not layers[0].shares:
        return "all" if layers else ""
    if layers[0].cuts_batch:
        weights = layers[0].weights
        return f"{_each([round(100 * part / sum(weights)) for part in weights], '/')} %"
    return _each(
        [sum(counts) for counts in zip(*(layer.counts for layer in layers), strict=True)], "/"
    )


def _each(counts: Sequence[int], separator: str) -> str:
    if len(counts) <= WIDE:
        return separator.join(map(str, counts))
    return f"{min(counts)} to {max(counts)}"


def _milliseconds(seconds: np.ndarray) -> str:
    digits = 1 if seconds.max() < 0.1 else 0
    if len(seconds) <= WIDE:
        return " / ".join(f"{1e3 * value:.{digits}f}" for value in seconds)
    return f"{1e3 * seconds.min():.{digits}f} to {1e3 * seconds.max():.{digits}f}"


def _sum(seconds: Iterable[np.ndarray]) -> np.ndarray:
    return np.sum(list(seconds), axis=0)


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} µs"
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _table(title: str) -> RichTable:
    return RichTable(
        box=None, title=title, title_justify="left", padding=(0, 2, 0, 0), header_style="bold"
    )
