"""How much memory each rank needs for a training step, beside its share of what one process needs.

Problem: a rank that holds a third of a network should need about a third of the memory, but it
also holds gathered inputs, whole summands of gradients, and buffers on the way. This measures the
peak of a step (forward, backward, SGD with momentum) for every tuning, less what the process held
before the model was made, and compares: peak / (share of the parameters x peak of one process).

Two figures, both sampled every few milliseconds, without the pages of libraries: PSS, where a page
of shared memory is divided among the ranks that touched it (the sum over the ranks is what the
host needs), and RSS, where each of them counts it whole. The targets hold for PSS.

Cost: some seconds per model and tuning; sampling slows a step down, so no time is shown. glibc's
malloc is told to give freed memory back at once (mallopt), else the peak is that of its habits;
--keep-freed leaves it as it is. One process is measured in a process of its own, without MPI.

    mpirun -n 2 python benchmarks/memory.py paper-cifar --batch-size 100 --weights 1,1
    mpirun -n 3 python benchmarks/memory.py vgg11 resnet18 --shape 3,32,32 --classes 10 --parts

--backward says what the backward pass has of all layers, where the tuning does not matter then.
--schemes cuts layers along the batch; a rank's share is then that of its weight.
--profile FILE, of 'hetmp profile' on as many ranks, compares with what the planner predicts; it
predicts malloc's habits, so give --keep-freed, too.
--parts tells what is held when the forward pass is over, and what ran at the peak. Linux only.
"""

import argparse
import ctypes
import gc
import json
import math
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hetmp
from hetmp import models
from hetmp.cluster import launched
from hetmp.cluster.device import choose_device
from hetmp.exchange.arena import Arena
from hetmp.planner import LinkModel, Profile, Tables, predict
from hetmp.slicing import PLAIN, make_table
from hetmp.slicing.graph import read_graph
from hetmp.slicing.scheduler import schedule_model
from hetmp.slicing.step_memory import MemoryOptions

TUNINGS = {
    "default": hetmp.Tuning(),
    "regather": hetmp.Tuning(regather=True),
    "no shared memory": hetmp.Tuning(shared_memory=False),
    "plain": PLAIN,
}
TARGETS = {"default": 1.25, "regather": 1.10, "no shared memory": 1.25, "plain": 1.25}
STEPS = 3
"""The optimizer's state is there from the second step on."""

EVERY = 0.002
"""Seconds between samples."""

MB = 1e6
GIVEN_BACK = 2**16
"""Bytes from which on malloc maps a block of its own, which goes back when it is freed."""

_LIBC = ctypes.CDLL(None)
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1


@dataclass
class Need:
    """What one rank needs: bytes above what it held before the model was made."""

    pss: float = 0.0
    rss: float = 0.0
    gpu: float = 0.0
    share: float = 1.0


class Watch:
    """Samples this process from a thread of its own, and keeps the peaks, in bytes."""

    def __init__(self) -> None:
        self.pss, self.rss, self.shared, self.stack = 0.0, 0.0, 0.0, ""
        self._rollup = open("/proc/self/smaps_rollup", "rb", buffering=0)  # noqa: SIM115
        self._status = open("/proc/self/status", "rb", buffering=0)  # noqa: SIM115
        self._over = threading.Event()
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def now(self) -> tuple[float, float, float]:
        """(PSS, RSS, the shared memory in the first), each without the pages of files."""
        own, shared = _bytes(self._rollup, b"Pss_Anon", b"Pss_Shmem")
        return own + shared, sum(_bytes(self._status, b"RssAnon", b"RssShmem")), shared

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self._rollup.close()
        self._status.close()

    def _sample(self) -> None:
        while not self._over.wait(EVERY):
            pss, rss, shared = self.now()
            self.rss = max(self.rss, rss)
            if pss > self.pss:
                self.pss, self.shared = pss, shared
                frame = sys._current_frames().get(self._main)
                calls = traceback.extract_stack(frame)[-4:]
                self.stack = " > ".join(f"{Path(c.filename).name}:{c.lineno}" for c in calls)


def _bytes(file: Any, *names: bytes) -> list[float]:
    file.seek(0)
    lines = dict(line.split(b":") for line in file.read().splitlines() if line.count(b":") == 1)
    if names[0] not in lines:
        sys.exit(f"{file.name} has no {names[0].decode()}: this needs Linux 5.4 or newer")
    return [1024.0 * int(lines[name].split()[0]) for name in names]


def settle() -> None:
    """Give back what nobody uses."""
    gc.collect()
    _LIBC.malloc_trim(0)


def warm_up(comm: Any, device: torch.device) -> None:
    """Start the threads and the libraries: what they take is no model's."""
    tiny = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    for tuning in TUNINGS.values() if comm else [None]:
        model: Any = tiny.to(device)
        if tuning is not None:
            model = hetmp.slice_model(tiny, [1] * comm.size, comm, tuning=tuning)
        step_with(model, torch.ones(2, 3, 8, 8, device=device))()


def step_with(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """A function that does one training step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    random = torch.Generator().manual_seed(0)

    def step() -> None:
        optimizer.zero_grad()
        y = model(x)
        labels = torch.randint(y.shape[1], (len(x), *y.shape[2:]), generator=random)
        nn.functional.cross_entropy(y, labels.to(y.device)).backward()
        optimizer.step()

    return step


def start(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Values to begin with; only their size matters."""
    if len(shape) == 1:
        return torch.full(shape, float(name.endswith("weight")))
    return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))


def measured(
    make: Callable[[], nn.Module], shape: tuple[int, ...], device: torch.device
) -> tuple[Need, Any]:
    """The peak of some steps above what is held before; and the model, with what it needs."""
    watch = Watch()
    settle()
    gpu = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    pss, rss, shared = watch.now()
    model = make()
    random = torch.Generator().manual_seed(0)  # a batch must be the same on every rank
    x = torch.randn(shape, generator=random).to(device)
    step = step_with(model, x)
    settle()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with watch:
        for _ in range(STEPS):
            step()
    need = Need(watch.pss - pss, watch.rss - rss)
    watch.shared -= shared
    if device.type == "cuda":
        need.gpu = torch.cuda.max_memory_allocated(device) - gpu
    return need, (model, x, watch)


def alone(told: Any, name: str, device: torch.device) -> Need:
    """What one process needs; in a process that never starts MPI."""
    torch.set_num_threads(1)
    if not told.keep_freed:
        give_back()
    warm_up(None, device)
    return measured(lambda: build(told, name).to(device), batch_shape(told, name), device)[0]


def build(told: Any, name: str) -> nn.Module:
    """The whole network."""
    torch.manual_seed(0)
    _, classes = models.published(name)
    return models.build(name, batch_shape(told, name)[1:], told.classes or classes)


def batch_shape(told: Any, name: str) -> tuple[int, ...]:
    """The shape of a batch, with images as large as they are published where nothing is said."""
    return told.batch_size, *(told.shape or models.published(name)[0])


def give_back() -> None:
    """Have malloc give large blocks back as soon as they are freed."""
    _LIBC.mallopt(_M_MMAP_THRESHOLD, GIVEN_BACK)
    _LIBC.mallopt(_M_TRIM_THRESHOLD, GIVEN_BACK)


def sliced(told: Any, name: str, tuning: hetmp.Tuning, device: torch.device) -> tuple[Need, str]:
    """What this rank needs, and for --parts in words what for. Collective."""
    from mpi4py import MPI

    # Of its own: the arena of shared memory belongs to it, and starts empty.
    comm = MPI.COMM_WORLD.Dup()

    def make() -> Any:
        with torch.device("meta"):
            whole = build(told, name)
        example = torch.empty(batch_shape(told, name), device="meta")
        plan = hetmp.plan_from_weights(read_graph(whole, example), told.weights, told.schemes)
        plan = plan.with_backward({"*": told.backward})
        model: Any = hetmp.slice_model(
            whole,
            plan,
            comm,
            init=start,
            device=device,
            tuning=tuning,
            example_input=example,
            verify=False,  # there is no whole module to hold it against
        )
        total = sum(parameter.numel() for parameter in whole.parameters())
        model.share = sum(parameter.numel() for parameter in model.parameters()) / total
        if told.schemes != "filters":  # some layers are whole on every rank
            model.share = told.weights[comm.rank] / sum(told.weights)
        return model

    comm.Barrier()
    need, (model, x, watch) = measured(make, batch_shape(told, name), device)
    need.share = model.share
    comm.Barrier()
    words = ""
    if told.parts:
        words = f"{parts(model, x)}; {watch.shared / MB:.1f} shared at the peak, {watch.stack}"
    return need, words


def parts(model: Any, x: Tensor) -> str:
    """What this rank holds when a forward pass is over, in words."""
    arena = Arena.of(model.hetmp.group)
    slots = list(arena._slots.values()) if arena else []
    homes = [(slot.memory.bytes.ctypes.data, slot.memory.bytes.size) for slot in slots]
    owned = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), x)}
    saved: dict[int, tuple[int, bool]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        at = storage.data_ptr()
        if at not in owned:
            shared = any(begin <= at < begin + size for begin, size in homes)
            saved[at] = storage.nbytes(), shared
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x)
    in_use = sum(slot.memory.bytes.size for slot in slots if not slot.free)
    held = sum(parameter.nbytes for parameter in model.parameters())
    own = sum(size for size, shared in saved.values() if not shared)
    borrowed = sum(size for size, shared in saved.values() if shared)
    y.sum().backward()
    return (
        f"weights, gradients, momentum 3 x {held / MB:.1f}, saved here {own / MB:.1f}, saved in "
        f"slots {borrowed / MB:.1f}; slots in use {in_use / MB:.1f}, of {len(slots)} with "
        f"{sum(size for _, size in homes) / MB:.1f}"
    )


def predicted(told: Any, name: str, tuning: hetmp.Tuning, ranks: int) -> list[float]:
    """The bytes that are predicted for each rank, or for one process."""
    profile = Profile.load(told.profile)
    with torch.device("meta"):
        whole = build(told, name)
    graph = read_graph(whole, torch.empty(batch_shape(told, name), device="meta"))
    weights, schemes = (told.weights, told.schemes) if ranks > 1 else ((1.0,), "filters")
    plan = hetmp.plan_from_weights(graph, weights, schemes).with_backward({"*": told.backward})
    schedule = schedule_model(graph, plan)
    model = LinkModel(profile)
    shares = ranks > 1 and tuning.shared_memory and model.extent(range(ranks)).hosts == 1
    return predict(
        graph,
        schedule,
        make_table(graph, schedule),
        Tables(profile.devices).of(range(ranks)),
        model.between(range(ranks)),
        told.batch_size,
        MemoryOptions(packing="share" if shares else "own"),
        plan.backward_by_layer(tuning.regather),
    ).memory.tolist()


def arguments() -> Any:
    """What is wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = lambda text: tuple(float(part) for part in text.split(","))  # noqa: E731
    sizes = lambda text: tuple(int(part) for part in text.split(","))  # noqa: E731
    parser.add_argument("models", nargs="+", help="names as hetmp models lists them")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--schemes", default="filters", help="filters, batch or batch:K")
    parser.add_argument(
        "--backward", choices=("keep", "regather", "recompute"), help="of all layers, in the plan"
    )
    parser.add_argument("--weights", type=numbers, help="1,1: relative speeds; equal if not given")
    parser.add_argument("--shape", type=sizes, help="3,32,32: of one image")
    parser.add_argument("--classes", type=int)
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--tunings", default=",".join(TUNINGS), help="some of the default's")
    parser.add_argument("--parts", action="store_true", help="tell what the memory is for")
    parser.add_argument("--keep-freed", action="store_true", help="leave malloc's habits")
    parser.add_argument("--profile", type=Path, help="compare with what this profile predicts")
    parser.add_argument("--json", type=Path, help="append the figures, a line per model")
    parser.add_argument("--alone", choices=("cpu", "cuda"), help=argparse.SUPPRESS)
    told = parser.parse_args()
    told.tunings = told.tunings.split(",")
    unknown = set(told.tunings) - set(TUNINGS)
    if unknown:
        parser.error(f"no tuning {', '.join(unknown)}: choose from {', '.join(TUNINGS)}")
    return told


def measure_alone(told: Any) -> dict[str, dict[str, Need]]:
    """What one process needs, by model and kind of device."""
    kinds = ["cpu"] if told.device == "cpu" or not torch.cuda.is_available() else ["cpu", "cuda"]
    found: dict[str, dict[str, Need]] = {}
    for name in told.models:
        for kind in kinds:
            command = [sys.executable, __file__, *sys.argv[1:], "--alone", kind]
            command = [word for word in command if word == name or word not in told.models]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            found.setdefault(name, {})[kind] = Need(**json.loads(done.stdout))
    return found


def over(part: float, whole: float) -> float | None:
    """A ratio; None for a rank that holds nothing."""
    return part / whole if whole else None


def shown(ratio: float | None) -> str:
    """A ratio in two digits."""
    return "-" if ratio is None else f"{ratio:.2f}"


def table(name: str, whole: dict[str, Need], rows: list[dict[str, Any]], words: str) -> None:
    """Print the figures of one model."""
    one = ", ".join(
        f"{need.pss / MB:.1f} MB" if kind == "cpu" else f"{need.gpu / MB:.1f} MB of its GPU"
        for kind, need in whole.items()
    )
    print(f"\n{name}: one process needs {one}{words}")
    print(f"{'tuning':17} rank  share  PSS MB  RSS MB  share×one  PSS ratio  RSS ratio  target")
    for row in rows:
        gpu = (
            f"; GPU {row['gpu'] / MB:.1f} MB, ratio {shown(row['gpu_ratio'])}" if row["gpu"] else ""
        )
        met = {True: "met", False: "MISSED", None: "-"}[row["met"]]
        print(
            f"{row['tuning']:17} {row['rank']:4} {row['share']:6.3f} {row['pss'] / MB:7.1f} "
            f"{row['rss'] / MB:7.1f} {row['ideal'] / MB:10.1f} {shown(row['pss_ratio']):>10} "
            f"{shown(row['rss_ratio']):>10}  {row['target']:.2f} {met}{gpu}"
        )
        if row["predicted"]:
            off = row["predicted"] / row["pss"] - 1
            print(f"{'':17} predicted {row['predicted'] / MB:.1f} MB, {100 * off:+.0f} %")
        if row["words"]:
            print(f"    {row['words']}")


def main() -> None:
    """Measure every model in every tuning; rank 0 prints."""
    told = arguments()
    if told.alone:
        print(json.dumps(asdict(alone(told, told.models[0], torch.device(told.alone)))))
        return
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # Before MPI starts: no MPI process has children.
    rank, _ = launched() or (0, 1)
    whole = measure_alone(told) if rank == 0 else {}
    torch.set_num_threads(1)
    if not told.keep_freed:
        give_back()
    group = hetmp.Group()
    from mpi4py import MPI

    told.weights = told.weights or (1.0,) * group.size
    device = choose_device(group, told.device)
    warm_up(MPI.COMM_WORLD.Dup(), torch.device("cpu"))
    if device.type == "cuda":
        warm_up(None, device)
    for name in told.models:
        rows: list[dict[str, Any]] = []
        for tuning in told.tunings:
            need, words = sliced(told, name, TUNINGS[tuning], device)
            expected = [0.0] * group.size
            if told.profile:
                expected = predicted(told, name, TUNINGS[tuning], group.size)
            numbers = group.allgather(np.array([need.pss, need.rss, need.gpu, need.share]))
            for number, (pss, rss, gpu, share) in enumerate(numbers.tolist()):
                spoken = group.broadcast_text(words, root=number)
                if not group.is_root:
                    continue
                cpu, cuda = whole[name]["cpu"], whole[name].get("cuda", Need())
                row: dict[str, Any] = {"tuning": tuning, "rank": number, "share": share}
                row |= {"pss": pss, "rss": rss, "gpu": gpu, "words": spoken}
                row["predicted"] = expected[number]
                row |= {"ideal": share * cpu.pss, "target": TARGETS[tuning]}
                row["pss_ratio"] = over(pss, share * cpu.pss)
                row["rss_ratio"] = over(rss, share * cpu.rss)
                row["gpu_ratio"] = over(gpu, share * cuda.gpu)
                ratio = row["gpu_ratio"] if gpu else row["pss_ratio"]
                row["met"] = None if ratio is None else ratio <= TARGETS[tuning]
                rows.append(row)
        if group.is_root:
            words = ""
            if told.profile:
                (one,) = predicted(told, name, TUNINGS["default"], 1)
                off = one / whole[name]["cpu"].pss - 1
                words = f"; predicted {one / MB:.1f} MB, {100 * off:+.0f} %"
            table(name, whole[name], rows, words)
            if told.json:
                setting = {
                    "model": name,
                    "batch_size": told.batch_size,
                    "shape": batch_shape(told, name)[1:],
                }
                setting |= {"weights": told.weights, "keep_freed": told.keep_freed}
                setting |= {"schemes": told.schemes}
                alone_needs = {kind: asdict(need) for kind, need in whole[name].items()}
                with told.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**setting, "one process": alone_needs, "rows": rows}))
                    file.write("\n")


if __name__ == "__main__":
    main()
