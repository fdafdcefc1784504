"""Metrics files made by hand, as a run of any shape would have written them."""

import json
import math
from pathlib import Path
from typing import Any


def plan(
    ranks: int,
    layers: int = 3,
    *,
    left_out: tuple[int, ...] = (),
    whole: tuple[int, ...] = (),
    by_images: tuple[int, ...] = (),
    predicted: bool = False,
) -> dict[str, Any]:
    """A plan of layers of 16 channels per member and more, each rank with a little more than the
    one before it. Layers *by_images* give rank i i + 1 parts of a batch."""
    members = [rank for rank in range(ranks) if rank not in left_out]
    parts = [0 if rank in left_out else rank + 1 for rank in range(ranks)]
    entries = []
    for number in range(layers):
        counts = [0] * ranks
        for i, rank in enumerate(members):
            counts[rank] = 16 + i + number % 3
        entries.append(
            {
                "name": f"features.{number}.conv",
                "kind": "Conv2d",
                "channels": sum(counts),
                "scheme": "whole" if number in whole else "filters",
                "counts": counts,
                "pieces": [],
            }
            | ({"scheme": "batch", "weights": parts} if number in by_images else {})
        )
    told: dict[str, Any] = {
        "format": "hetmp-plan",
        "version": 2,
        "ranks": ranks,
        "layers": entries,
        "left_out": list(left_out),
        "fingerprint": "",
        "devices": [],
        "predicted_seconds": None,
        "predicted": [],
    }
    if predicted:
        told["predicted"] = [
            {
                "name": entry["name"],
                "compute": [0.004 + 0.001 * i for i in range(len(members))],
                "exchange": 0.001,
                "idle": [0.001 * (len(members) - 1 - i) for i in range(len(members))],
            }
            for entry in entries
        ]
        told["predicted_seconds"] = layers * (0.004 + 0.001 * len(members))
        told["predicted_alternatives"] = {"the fastest rank alone": 0.2, "equal split": 0.15}
    return told


def run(
    plan: dict[str, Any], *, steps: int, resumed: int = 0, config: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The first record of a run."""
    place = {"host": "node1", "kind": "cpu", "device": "AMD EPYC", "cores": 8, "threads": 8}
    return {
        "kind": "run",
        "started": "2026-01-02T03:04:05+0000",
        "config": {"model": "digits", "data": "digits", "batch_size": 64, "readers": 1}
        | {"dtype": "float32", "lr": 0.05, "optimizer": "sgd", "schedule": "cosine"}
        | (config or {}),
        "ranks": plan["ranks"] - len(plan["left_out"]),
        "threads": 8,
        "host": "node1",
        "placement": [
            place | {"host": f"node{rank // 8}", "memory": 1 << 34} for rank in range(plan["ranks"])
        ],
        "mpi": "MPICH 5.0.2",
        "versions": {"hetmp": "0.1.0", "torch": "2.13.0"},
        "plan": plan,
        "steps": steps,
        "resumed": resumed,
    }


def step(
    number: int,
    compute: list[float],
    exchange: float = 0.01,
    waiting: list[float] | None = None,
    reading: float = 0.0,
    **more: Any,
) -> dict[str, Any]:
    """A step; without *waiting*, ranks wait for the one that computes longest."""
    ranks = len(compute)
    return {
        "kind": "step",
        "step": number,
        "epoch": number // 20,
        "loss": 2.3 * math.exp(-number / 30),
        "accuracy": 1 - 0.9 * math.exp(-number / 30),
        "lr": 0.05,
        "seconds": {
            "compute": compute,
            "exchange": [exchange] * ranks,
            "waiting": waiting or [max(compute) - own for own in compute],
            "reading": [reading] * ranks,
        },
        "images": 64,
        "time": 1767323045.0 + number,
    } | more


def evaluation(steps: int) -> dict[str, Any]:
    """An evaluation after so many steps."""
    return {
        "kind": "evaluation", "step": steps, "epoch": steps // 20, "loss": 0.3, "accuracy": 0.9,
        "time": 1767323045.0 + steps, "seconds": 0.5,
    }  # fmt: skip


def layers(plan: dict[str, Any], steps: int = 5) -> dict[str, Any]:
    """What watching some steps gave."""
    members = [rank for rank in range(plan["ranks"]) if rank not in plan["left_out"]]
    ranks = len(members)
    names = [""] + [entry["name"] for entry in plan["layers"]]
    each = [0.002 + 0.0005 * i for i in range(ranks)]
    return {
        "kind": "layers",
        "first": 3,
        "steps": steps,
        "images": 64,
        "layers": [
            {
                "name": name,
                "forward": [(1 + number % 4) * value for value in each],
                "backward": [2 * (1 + number % 4) * value for value in each],
                "exchange": 0.001 * (number % 5),
                "waiting": each[::-1],
            }
            for number, name in enumerate(names)
        ],
        "exchanges": [
            {
                "name": name,
                "collective": "Allgatherv" if direction == "forward" else "Reduce_scatter",
                "direction": direction,
                "calls": 1,
                "bytes": [1000 * (number + 1) * (i + 1) for i in range(ranks)],
                "seconds": [0.002] * ranks,
                "exchange": 0.001,
                "waiting": [0.001] * ranks,
            }
            for number, name in enumerate(names[1:])
            for direction in ("forward", "backward")
            if ranks > 1
        ],
        "rest": {"loss": each, "optimizer": each, "agreeing": [0.0001] * ranks},
    }


def memory(plan: dict[str, Any]) -> dict[str, Any]:
    """What each rank holds."""
    members = [rank for rank in range(plan["ranks"]) if rank not in plan["left_out"]]
    held = [sum(layer["counts"][rank] for layer in plan["layers"]) for rank in members]
    whole = 1000 * sum(held)
    sizes = [1010 * count for count in held]
    return {
        "kind": "memory",
        "parameters": sizes,
        "gradients": sizes,
        "optimizer": sizes,
        "activations": [50_000] * len(members),
        "peak": [300_000_000] * len(members),
        "before": [250_000_000] * len(members),
        "whole": {"parameters": whole, "gradients": whole, "optimizer": whole},
        "share": [count / max(1, sum(held)) for count in held],
    }


def end(steps: int) -> dict[str, Any]:
    """That the run is over."""
    return {
        "kind": "end",
        "steps": steps,
        "loss": 0.1,
        "accuracy": 0.9,
        "time": 1767323045.0 + steps,
    }


def written(folder: Path, records: list[dict[str, Any]]) -> Path:
    """The folder of a run with these records."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def whole_run(
    plan: dict[str, Any], compute: list[float], *, steps: int = 40, **config: Any
) -> list[dict[str, Any]]:
    """All records of a run that ended; *compute* is of each member, the same in every step."""
    taken = [step(number, compute) for number in range(steps)]
    head = [run(plan, steps=steps, config=config), memory(plan)]
    return [*head, *taken, layers(plan), evaluation(steps), end(steps)]
