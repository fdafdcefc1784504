"""Checkpoints displayed in a terminal: no torch, no MPI."""

import json
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hetmp.checkpoint.catalog import Catalog, Stored
from hetmp.checkpoint.format import AVERAGE, BUFFERS, EXTRA, MODEL, OPTIMIZER, TRAINING, unescaped
from hetmp.checkpoint.statistics import Difference, Figures, figures, histogram
from hetmp.checkpoint.values import TEXT, as_value
from hetmp.core.text import bytes_text

BAR = 24
"""Characters of the picture of a partition."""

COLORS = "cyan", "magenta", "yellow", "green", "blue", "red"
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
"""Colors and digits of the ranks, in turn."""

SHORT = 60
"""Texts are shown up to so many characters."""


def overview(catalog: Catalog, *, everything: bool = False) -> RenderableType:
    """Render the contents of a checkpoint.

    Args:
        everything: show the optimizer's state tensor by tensor, too.
    """
    parts: list[RenderableType] = [_heading(catalog)]
    for name in (MODEL, BUFFERS, AVERAGE):
        if catalog.under(name):
            parts.append(_tensors(catalog, name, catalog.under(name)))
    if catalog.under(OPTIMIZER):
        below = catalog.under(OPTIMIZER)
        whole = _tensors(catalog, OPTIMIZER, below) if everything else _states(catalog, below)
        parts.append(whole)
    for name in (TRAINING, EXTRA):
        if catalog.under(name):
            parts.append(_values(catalog, name, catalog.under(name)))
    if not everything:
        parts.append(Text("--all shows the optimizer's state tensor by tensor", style="dim"))
    return Group(*(item for part in parts for item in (part, Text())))


def one_tensor(catalog: Catalog, stored: Stored) -> RenderableType:
    """Render statistics and a histogram of a dataset."""
    stats = figures(catalog, stored)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    rows: list[tuple[str, str]] = [
        ("shape", _shape(stored)),
        ("dtype", stored.dtype),
        ("size", bytes_text(stored.shape.bytes)),
        ("mean", f"{stats.mean:.6g}"),
        ("deviation", f"{stats.deviation:.6g}"),
        ("least, most", f"{stats.least:.6g}, {stats.most:.6g}"),
        ("norm", f"{stats.norm:.6g}"),
        ("zeros", f"{stats.zeros} of {stats.numbers}"),
        ("NaN or infinite", str(stats.not_finite)),
    ]
    for row in rows:
        table.add_row(*row)
    parts: list[RenderableType] = [Text(f"/{stored.path}", style="bold"), table]
    if stored.axis is not None:
        parts.append(Text.assemble("cut along axis ", str(stored.axis), "  ", _picture(stored)))
        parts.append(Text(_owned(stored)))
    if stats.numbers > stats.not_finite:
        counts, edges = histogram(catalog, stored, stats)
        bars = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
        bars.add_column(justify="right")
        bars.add_column(justify="right")
        for i, count in enumerate(counts):
            bar = "█" * round(40 * count / max(1, counts.max()))
            bars.add_row(f"{edges[i]:.3g}", str(count), bar or ("▏" if count else ""))
        parts += [Text(), bars]
    return Group(*parts)


def differences(compared: list[Difference]) -> RenderableType:
    """Render how two checkpoints differ, the largest difference first."""
    changed = sorted(
        (item for item in compared if item.why or item.relative > 0),
        key=lambda item: (-item.relative, item.path),
    )
    same = len(compared) - len(changed)
    if not changed:
        return Text(f"the same: {same} datasets")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("dataset")
    table.add_column("relative difference", justify="right")
    table.add_column("largest", justify="right")
    for item in changed:
        if item.why:
            table.add_row(f"/{item.path}", item.why, "")
        else:
            table.add_row(f"/{item.path}", f"{item.relative:.3e}", f"{item.largest:.3e}")
    return Group(table, Text(f"{len(changed)} datasets differ, {same} are the same"))


def as_json(catalog: Catalog) -> str:
    """Return the contents of an overview as JSON, for programs."""
    contents: dict[str, Any] = {"file": catalog.file.filename, "meta": catalog.meta, "datasets": {}}
    for path, stored in catalog.stored.items():
        entry: dict[str, Any] = {
            "shape": list(stored.sizes),
            "dtype": stored.dtype,
            "bytes": stored.shape.bytes,
            "digest": stored.digest,
        }
        if stored.axis is not None:
            entry |= {"axis": stored.axis, "owners": [list(run) for run in stored.owners]}
        if stored.dtype != TEXT:
            entry["norm"] = figures(catalog, stored).norm
        contents["datasets"][path] = entry
    return json.dumps(contents, indent=1)


def _heading(catalog: Catalog) -> Text:
    meta, path = catalog.meta, Path(catalog.file.filename)
    once = {stored.number: stored.shape.bytes for stored in catalog.stored.values()}
    ranks = f"{meta.get('ranks')} rank{'s' * (meta.get('ranks') != 1)}"
    lines = [
        f"{path}: {bytes_text(path.stat().st_size)}, {len(once)} datasets of "
        f"{bytes_text(sum(once.values()))}",
        f"written {meta.get('created')} by {ranks} on {meta.get('hosts')} ({meta.get('writer')})",
        f"hetmp {meta.get('hetmp')}, torch {meta.get('torch')}, {meta.get('mpi')}, h5py "
        f"{meta.get('h5py')}, HDF5 {meta.get('hdf5')}, format version {meta.get('version')}",
    ]
    if meta.get("model"):
        lines.insert(1, f"model {meta['model']}")
    return Text("\n".join(lines))


def _tensors(catalog: Catalog, group: str, below: dict[str, Stored]) -> Table:
    table = _table(f"/{group}", ("name", "shape", "dtype", "size", "norm", "who held what"))
    for path, stored in below.items():
        stats: Figures = figures(catalog, stored)
        table.add_row(
            Text("/".join(map(unescaped, path.split("/")))),
            _shape(stored),
            stored.dtype,
            bytes_text(stored.shape.bytes),
            _norm(stats),
            _picture(stored),
        )
    return table


def _states(catalog: Catalog, below: dict[str, Stored]) -> Table:
    """Render the optimizer's state, by kind."""
    table = _table(f"/{OPTIMIZER}", ("state", "tensors", "dtype", "size", "norm"))
    kinds: dict[str, list[Stored]] = {}
    for path, stored in below.items():
        kinds.setdefault(path.rpartition("/")[2], []).append(stored)
    for kind, group in kinds.items():
        norm = sum(figures(catalog, stored).norm ** 2 for stored in group) ** 0.5
        table.add_row(
            unescaped(kind),
            str(len(group)),
            ", ".join(dict.fromkeys(stored.dtype for stored in group)),
            bytes_text(sum(stored.shape.bytes for stored in group)),
            f"{norm:.4g}",
        )
    return table


def _values(catalog: Catalog, group: str, below: dict[str, Stored]) -> Table:
    table = _table(f"/{group}", ("name", "value"))
    for path, stored in below.items():
        if stored.sizes:
            shown = f"{_shape(stored)} {stored.dtype}"
        else:
            shown = str(as_value(catalog.read(stored), stored.dtype))
        name = "/".join(map(unescaped, path.split("/")))
        table.add_row(Text(name), Text(shown if len(shown) <= SHORT else f"{shown[:SHORT]} ..."))
    return table


def _table(title: str, headings: tuple[str, ...]) -> Table:
    table = Table(
        box=None, title=title, title_justify="left", padding=(0, 2, 0, 0), header_style="bold"
    )
    right = "size", "norm", "tensors"
    for heading in headings:
        table.add_column(
            heading,
            justify="right" if heading in right else "left",
            no_wrap=heading != "value",
        )
    return table


def _picture(stored: Stored) -> Text:
    """Draw the axis as a bar; each rank's part is its digit (then a to z), in its color."""
    text = Text()
    if stored.axis is None:
        return Text("all, on every rank", style="dim") if stored.sizes else text
    length = max(1, stored.sizes[stored.axis])
    for rank, start, stop in sorted(stored.owners, key=lambda run: run[1]):
        width = round(BAR * stop / length) - round(BAR * start / length)
        text.append(DIGITS[rank % len(DIGITS)] * width, COLORS[rank % len(COLORS)])
    return text


def _owned(stored: Stored) -> str:
    return "\n".join(
        f"  rank {rank}: {start} to {stop - 1}"
        for rank, start, stop in sorted(stored.owners, key=lambda run: run[1])
    )


def _norm(stats: Figures) -> str:
    return f"{stats.norm:.4g}" + (" !" if stats.not_finite else "")


def _shape(stored: Stored) -> str:
    return "×".join(map(str, stored.sizes)) or "a number"
