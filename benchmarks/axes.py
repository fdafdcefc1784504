"""Is the planned step never slower than what could have been chosen by hand, network by network?

Problem: filters, batch or a mixture, all ranks or one: which is faster depends on the network, the
batch and the ranks. For each of --models, --batches and --slowdowns, benchmarks/planner.py profiles
two ranks and times, in turns, the planned step (twice, so that the spread of equal steps is seen),
`filters` everywhere with the best shares of both ranks, `batch` everywhere with images by speed
(weighted data parallelism), and the fastest rank alone. A row of the table, in Markdown:

    plan      the schemes of the planned layers, and how many there are of each
    again     the same plan once more, over the planned one
    filters, batch, alone    their medians over that of the planned one: above 1, planned is faster
    error     of the predicted time of the planned step

Cost: a minute and a half for each row with the defaults; what is measured is also kept in --json.

    python benchmarks/axes.py --models paper-cifar,vgg11 --batches 16,64 --slowdowns 1,1:1,3
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PLANS = ("planned", "planned, again", "filters", "batch", "alone")
SHAPES = {"unet": "3,64,64"}
"""Of images, where they are not 3,32,32."""


def main() -> None:
    """Measure row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="paper-cifar,vgg11,resnet18,mobilenet_v2,unet")
    parser.add_argument("--batches", default="16,64")
    parser.add_argument("--slowdowns", default="1,1:1,3", help="of the ranks, separated by colons")
    parser.add_argument("--seconds", type=float, default=25, help="of profiling")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--json", type=Path, default=Path("axes.jsonl"))
    args = parser.parse_args()
    print("| network | batch | slowed | plan | again | filters | batch | alone | error |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for model in args.models.split(","):
        for batch in args.batches.split(","):
            for slowdown in args.slowdowns.split(":"):
                print(row(args, model, batch, slowdown), flush=True)


def row(args: Any, model: str, batch: str, slowdown: str) -> str:
    """Measure one network at one batch on ranks of these speeds; write it as a row."""
    ranks = str(len(slowdown.split(",")))
    command = [str(ROOT / "scripts/mpirun.sh"), "-n", ranks, sys.executable]
    command += [str(ROOT / "benchmarks/planner.py"), model, "--batch-size", batch]
    command += ["--shape", SHAPES.get(model, "3,32,32"), "--classes", "10"]
    command += ["--slowdown", slowdown, "--seconds", str(args.seconds)]
    command += ["--repeats", str(args.repeats), "--only", ";".join(PLANS)]
    command += ["--json", str(args.json)]
    done = subprocess.run(command, capture_output=True, text=True)
    cells = [model, batch, slowdown.replace(",", ", ")]
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        return f"| {' | '.join(cells)} | failed: {' '.join(last)} |"
    plans = json.loads(args.json.read_text(encoding="utf-8").splitlines()[-1])["plans"]
    if "planned" not in plans:
        return f"| {' | '.join(cells)} | {args.seconds:g} s were too few to measure the plan |"
    planned = plans["planned"]
    schemes = Counter(planned["schemes"]).most_common()
    cells.append(", ".join(f"{count} {scheme}" for scheme, count in schemes))
    if planned["left out"]:
        cells[-1] = f"rank {', '.join(map(str, planned['left out']))} left out"
    for name in PLANS[1:]:
        cells.append(ratio(plans[name], planned) if name in plans else "-")
    cells.append(f"{100 * (planned['predicted'] / planned['measured'] - 1):+.0f} %")
    return f"| {' | '.join(cells)} |"


def ratio(other: dict[str, Any], planned: dict[str, Any]) -> str:
    """The median of one plan's steps over that of the planned one's."""
    return f"{statistics.median(other['all']) / statistics.median(planned['all']):.2f}"


if __name__ == "__main__":
    main()
