"""Holds hetmp against architectures that others wrote, and writes docs/models.md.

Problem: hetmp says of itself that it slices any convolutional network as it is. This takes the
networks of public packages (tests/cases/architectures), slices each as it comes, verified against
the module, trains it beside the unsliced module in float64 and compares outputs, every gradient,
and every parameter and buffer after the last step. Every rank has a loss of its own; the unsliced
module is trained on their mean.

It starts the ranks itself. A network that crashes or hangs ends its job: it is noted, and the next
job goes on behind it. What is in the file of results already is not run again. Packages that are
not installed are left out, with a word.

Cost: seconds to a minute per network, on two cores.

    python benchmarks/architectures.py --out docs/models.md
    python benchmarks/architectures.py --only UNet --only PoolFormer
    python benchmarks/architectures.py --schemes batch --results runs/by-batch.jsonl
"""

import argparse
import gc
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import hetmp  # noqa: E402
from cases.architectures import ARCHITECTURES, Architecture  # noqa: E402
from helpers.architecture_comparison import compare, figures  # noqa: E402

WEIGHTS = {3: (70, 25, 5), 5: (3, 0, 2, 1, 2)}
"""Number of ranks -> their weights."""

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}

Results = dict[tuple[str, int], dict[str, Any]]
"""(name, ranks) -> what was found."""


NOT_RUN = {"ended": "not run"}


# --- on the ranks -------------------------------------------------------------------------------


def job(names: Sequence[str], results: Path, schemes: str) -> None:
    """Compare one network after the other under *schemes*; rank 0 writes a line for each."""
    group = hetmp.Group()
    for name in names:
        began = time.perf_counter()
        try:
            found = examine(BY_NAME[name], group, schemes)
        except hetmp.HetmpError as error:
            found = {"refused": str(error)}
        found |= {"name": name, "ranks": group.size, "seconds": time.perf_counter() - began}
        if group.is_root:
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
        gc.collect()


def examine(architecture: Architecture, group: hetmp.Group, schemes: str) -> dict[str, Any]:
    """Return figures, the largest error, and what differs over all ranks."""
    weights = WEIGHTS[group.size]
    record: dict[str, Any] = {}
    with group.together():
        if group.is_root:
            record = asdict(figures(architecture, weights))
    differences, model = compare(architecture, weights, schemes)
    largest = group.allgather(np.array([differences.largest])).max()
    texts = group.gather_texts("\n".join(differences.found[:3]))
    return record | {
        "error": float(largest),
        "different": [text for text in texts or () if text],
        "unverified": model.hetmp.verification.reason,
    }


# --- the jobs -----------------------------------------------------------------------------------


def run(names: Sequence[str], ranks: int, results: Path, schemes: str, patience: float) -> None:
    """Compare every network on *ranks* ranks, in as many jobs as that takes."""
    left = [name for name in names if (name, ranks) not in read(results)]
    while left:
        said = results.with_suffix(f".{ranks}.log")
        command = [
            str(ROOT / "scripts/mpirun.sh"),
            "-n",
            str(ranks),
            sys.executable,
            "-m",
            "mpi4py",
        ]
        command += [__file__, "--results", str(results), "--schemes", schemes, "--job", *left]
        with said.open("w", encoding="utf-8") as log:
            started = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            late = _wait(started, results, patience)
        done = {name for name, size in read(results) if size == ranks}
        left = [name for name in left if name not in done]
        if left:
            why = f"took more than {patience:.0f} s" if late else _last_line(said)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"name": left[0], "ranks": ranks, "ended": why}) + "\n")
            print(f"{left[0]} on {ranks} ranks ended its job: {why}", flush=True)
            left = left[1:]


def _wait(started: "subprocess.Popen[bytes]", results: Path, patience: float) -> bool:
    """Wait for a job, and tell its lines; whether a network took too long, which ends the job."""
    told, since = len(read(results)), time.monotonic()
    while started.poll() is None:
        time.sleep(0.5)
        found = read(results)
        if len(found) > told:
            for line in list(found.values())[told:]:
                print(_short(line), flush=True)
            told, since = len(found), time.monotonic()
        if time.monotonic() - since > patience:
            started.terminate()  # mpirun ends its ranks
            try:
                started.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(started.pid, signal.SIGKILL)
                started.wait()
            return True
    return False


def _short(line: Mapping[str, Any]) -> str:
    what = line.get("refused") or line.get("ended") or f"{line['error']:.0e}"
    return f"{line['name']} on {line['ranks']} ranks, {line.get('seconds', 0):.0f} s: {what[:200]}"


def _last_line(said: Path) -> str:
    lines = [line for line in said.read_text(encoding="utf-8").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line and not line.startswith(" ")]
    return next(iter(errors or lines[-1:]), "it ended without a word")


def read(results: Path) -> Results:
    """What was found so far."""
    if not results.exists():
        return {}
    text = results.read_text(encoding="utf-8")
    lines = map(json.loads, text[: text.rfind("\n") + 1].splitlines())  # one may be half written
    return {(line["name"], line["ranks"]): line for line in lines}


# --- the page -----------------------------------------------------------------------------------

HEAD = """# Models that others wrote

hetmp slices modules as they are. This page holds it against {count} architectures from {packages}
public packages that nobody here wrote: each was built with random weights, sliced as it came, and
trained for two steps of SGD beside the unsliced module, in float64, on 3 and on 5 ranks.

**{exact} of {count} are exact.** {traced} were read and sliced. For {verified} of them, what was
read was verified against the module itself, as `slice_model` does unless it is told not to:
outputs, buffers and gradients, in training and in evaluation.

{clean} have a rule for every operation. The others have {fallbacks} operations, of {operations} in
all, that every rank computes whole: [they are named below]({whole_link}).
Of the work of all convolutions and linear layers, {whole} is done whole by every rank.

| package | version | networks | exact | operations computed whole |
| --- | --- | --: | --: | --: |
{table}
## What was done

- `benchmarks/architectures.py` writes this page; `tests/test_architectures.py` compares {small} of
  the networks at every change.
- On 3 ranks with the weights 70 : 25 : 5; on 5 ranks with 3 : 0 : 2 : 1 : 2, one of which holds
  nothing. Every rank has a loss of its own, over all tensors that the network gives.
- Compared are all outputs, the gradients of the inputs and of every parameter at each step, and
  every parameter and buffer after the last. *Exact* means that none is off by more than 1e-10 of
  its own norm or the largest gradient's, whichever is larger.
- Nothing in the packages is changed, but for this: dropout and paths left out at random are set to
  0 (sliced dropout draws other masks than torch's); large classifiers of pytorchcv, torchvision's
  S3D and its VGG get a pooling of any size at their end, so that small images will do.
- Widths, depths and images are smaller than usual where a step would otherwise take long: see
  `tests/cases/architectures`.
- A network is left out where it cannot be compared: where it draws random numbers (VAEs), or where
  the last bits of its own weights, changed, change its second step by more than 1e-10. That is so
  of pytorchcv's sqnxt23_w1 (1e-7) and sknet50 (4e-9), and of torchvision's deeplabv3_resnet50
  (3e-9) and resnet50 (6e-10), which are as exact after one step as the others.
- timm's EfficientViT attends in float32 whatever it is given, and so is off by 2e-7; with this in
  float64 it is off by 1e-14. It is left out, too.
- timm's ConViT is refused, in words: its forward assigns a buffer of its own, the positions for the
  size of image that comes.

## What they taught

These were read wrongly, refused or computed whole at first. What mends it has tests of its own.

- ResNet, RegNet, ConvNeXt, FocalNet, HighResNet branch on sizes and loop over them:
  `tests/test_graph_sizes.py`.
- EfficientNet, MobileNet V1 and V2 pad by sizes, then call `F.conv2d` on the layer's own weight;
  ConvNeXt and DINOv3 have their layer norm between two permutations, in a subclass; BiT, XDenseNet
  and TResNet convolve with weights that are standardised, masked or constant; SwinUNETR assigns
  into parts of a mask: `tests/test_functional_layers.py`.
- UNETR, SegFormer and LeViT attend by heads, with `einops` and without:
  `tests/test_attention_blocks.py`, `tests/test_ops_products.py`.
- SegNet, ENet and QuickNAT put maxima back where pooling found them:
  `tests/test_ops_unpooling.py`.
- LocalNet stacks the parts of a split, which torch.fx did not take for activations:
  `tests/test_graph_tracing.py`.
- SwiftFormer, MobileViT V2 and CBAM normalise, repeat, unfold, fold, and take maxima over channels;
  Swin rolls its windows: `tests/test_ops_axes.py`.

## What the columns say

| column | |
| --- | --- |
| images | shape of one image, or of one input |
| operations | layers, functions and methods that run in training; "–": it could not be read |
| on 3, on 5 | the largest relative error on 3 and on 5 ranks; "no": not sliced, or it differs |
| fallbacks | operations without a rule, which every rank computes whole |
| whole | of the work of convolutions and linear layers, the part that every rank does whole |
| parameters | percent of the parameters that each of 3 ranks holds, of weights 70 : 25 : 5 |
| MB | what all 3 ranks together receive per image in float32, forward and backward |

"""

WHOLE = """## What every rank computes whole

hetmp has no rule for these operations. They are as exact as the others, but no faster on several
ranks. `BatchNormAct2d` is timm's batch norm with its activation, a subclass that counts its batches
itself; `MultiheadAttention` is torch's own layer. torchvision hides the functions that begin with
an underscore, `stochastic_depth` and the window attentions from torch.fx (`torch.fx.wrap`), so
hetmp does not look into them, and work inside them is not in the share above.

"""


def page(results: Results, architectures: Sequence[Architecture]) -> str:
    """docs/models.md."""
    shown = [one for one in architectures if (one.name, 3) in results]
    exact = [one for one in shown if not any(map(_is_bad, _both(results, one)))]
    missing = sum((one.name, ranks) not in results for one in shown for ranks in WEIGHTS)
    sliced = [results[one.name, 3] for one in shown if "error" in results[one.name, 3]]
    work = sum(line["work"] for line in sliced)
    whole = sum(line["work"] * line["whole"] for line in sliced) / max(work, 1)
    packages = dict.fromkeys(one.distribution for one in shown)
    parts = [
        HEAD.format(
            count=len(shown),
            packages=len(packages),
            exact=len(exact),
            traced=len(sliced),
            verified=sum(line["unverified"] is None for line in sliced),
            clean=sum(not line["fallbacks"] for line in sliced),
            fallbacks=sum(len(line["fallbacks"]) for line in sliced),
            operations=sum(line["nodes"] for line in sliced),
            whole_link="#what-every-rank-computes-whole",
            whole=_percent(whole),
            table="".join(_of_package(package, results, shown, exact) for package in packages),
            small=sum(one.small for one in ARCHITECTURES),
        )
    ]
    if missing:
        parts.append(f"{missing} of these runs are still to be made: their cells are empty.\n\n")
    for package in packages:
        some = [one for one in shown if one.distribution == package]
        version = importlib.metadata.version(package)
        good = sum(one in exact for one in some)
        parts.append(f"## {package} {version}\n\n{good} of {len(some)} are exact.\n\n")
        parts.append("| architecture | images | operations | on 3 | on 5 | fallbacks | whole ")
        parts.append(
            "| parameters | MB |\n| --- | --- | --: | --: | --: | --: | --: | --: | --: |\n"
        )
        parts += [_row(one, *_both(results, one)) for one in some]
        parts.append("\n")
    parts.append(_reasons(results, shown))
    parts.append(_how(packages))
    return "".join(parts)


def _of_package(
    package: str,
    results: Results,
    shown: Sequence[Architecture],
    exact: Sequence[Architecture],
) -> str:
    """Return the row of a package in the first table."""
    own = [each for each in shown if each.distribution == package]
    whole = sum(len(results[each.name, 3].get("fallbacks", ())) for each in own)
    good = sum(each in exact for each in own)
    version = importlib.metadata.version(package)
    return f"| {package} | {version} | {len(own)} | {good} | {whole} |\n"


def _both(results: Results, one: Architecture) -> list[dict[str, Any]]:
    return [results.get((one.name, ranks), NOT_RUN) for ranks in WEIGHTS]


def _is_bad(line: Mapping[str, Any]) -> bool:
    return line is not NOT_RUN and ("error" not in line or bool(line["different"]))


def _row(one: Architecture, on_3: Mapping[str, Any], on_5: Mapping[str, Any]) -> str:
    images = " + ".join("×".join(map(str, shape[1:])) for shape in one.shapes)
    cells = [one.name, images, "–", _error(on_3), _error(on_5), "", "", "", ""]
    if "error" in on_3:
        cells[2] = str(on_3["nodes"])
        cells[5] = str(len(on_3["fallbacks"]))
        cells[6] = _percent(on_3["whole"])
        cells[7] = " / ".join(f"{100 * held:.0f}" for held in on_3["held"])
        cells[8] = f"{on_3['exchanged'] / 1e6:.1f}"
    return f"| {' | '.join(cells)} |\n"


def _error(line: Mapping[str, Any]) -> str:
    if "error" not in line:
        return "" if line is NOT_RUN else "no"
    return f"{line['error']:.0e}" if not line["different"] else f"no: {line['error']:.0e}"


def _percent(share: float) -> str:
    if 0 < share < 0.0005:
        return "less than 0.1 %"
    return f"{100 * share:.1f} %" if share else "0 %"


def _reasons(results: Results, shown: Iterable[Architecture]) -> str:
    """What is computed whole, what differs and what was refused, by name."""
    whole, bad = [], []
    for one in shown:
        on_3, on_5 = _both(results, one)
        if on_3.get("fallbacks"):
            counts = Counter(on_3["fallbacks"])
            what = ", ".join(f"{n} × `{title}`" for title, n in counts.most_common())
            whole.append(f"- {one.name}: {what}\n")
        for line in (on_3, on_5):
            if _is_bad(line):
                why = line.get("refused") or line.get("ended") or line["different"][0]
                bad.append(f"- {one.name}: {_told(why)}\n")
                break
    text = ""
    if bad:
        text += "## What is not exact, or was refused\n\n" + "".join(bad) + "\n"
    if whole:
        text += WHOLE + "".join(whole) + "\n"
    return text


def _told(why: str) -> str:
    """A reason in one line, without where this machine keeps its packages."""
    line = re.sub(r"\S*/site-packages/", "", " ".join(why.split())).removeprefix("rank 0: ")
    return line[:250]


def _how(packages: Iterable[str]) -> str:
    return f"""## Again

```sh
.venv/bin/pip install {" ".join(packages)}
.venv/bin/python benchmarks/architectures.py --out docs/models.md
```

This page was written with torch {importlib.metadata.version("torch")}. A package that is not
installed is left out, with a word. pytorchcv asks for torchvision, which its networks do not use:
`pip install --no-deps pytorchcv`. torchvision must be the one for the torch that is installed.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", help="of these networks, by a part of the name")
    parser.add_argument("--package", action="append", help="of these packages, as pip calls them")
    parser.add_argument("--out", type=Path, help="the page; printed if not given")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "runs/architectures.jsonl", help="kept as it goes"
    )
    parser.add_argument(
        "--schemes", default="filters", help="filters, batch or batch:K; see hetmp explain --help"
    )
    parser.add_argument("--patience", type=float, default=300, help="seconds for one network")
    parser.add_argument("--write", action="store_true", help="only write what the results hold")
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.job:
        job(told.job, told.results, told.schemes)
        return
    missing = {one.distribution for one in ARCHITECTURES if not one.available}
    for package in sorted(missing):
        print(f"left out: {package} is not installed", flush=True)
    chosen = [
        one
        for one in ARCHITECTURES
        if one.available
        and (not told.package or one.distribution in told.package)
        and (not told.only or any(part in one.name for part in told.only))
    ]
    told.results.parent.mkdir(parents=True, exist_ok=True)
    if not told.write:
        for ranks in WEIGHTS:
            run([one.name for one in chosen], ranks, told.results, told.schemes, told.patience)
    text = page(read(told.results), chosen)
    if told.out:
        told.out.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
