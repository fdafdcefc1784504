"""How fast are checkpoints written and read, and how long does training wait for them?

Problem: a checkpoint costs time, so it is held against what must be done anyway. A model of
--megabytes is saved and loaded by

    streamed      hetmp.save through rank 0, and hetmp.load
    parallel      the same with all ranks writing, where h5py was built with MPI
    torch         torch.save of the whole tensors on rank 0, with fsync, and torch.load
    h5py          the same tensors as plain datasets by rank 0, with fsync, and read again

in turns; medians and their ratios. hetmp's figures contain what the others do not do: collecting
slices, digests, checksums, and reading everything again before the file gets its name.

Then --steps steps are trained without saving, with a checkpoint every --every steps, and with
the same behind the training; the stall is what a save adds, as a share of a step.

Cost: files of --megabytes in --folder, two at a time; some minutes.

    mpirun -n 2 python benchmarks/saving.py --folder /scratch
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import torch
from torch import nn

import hetmp
from hetmp import models
from hetmp.checkpoint.background import Saver
from hetmp.checkpoint.save_load import gather
from hetmp.checkpoint.writers import has_parallel_hdf5
from hetmp.cluster import Group
from hetmp.cluster.device import share_cores


def wide(megabytes: int) -> nn.Module:
    """Convolutions of 1,024 channels, 36 MiB each, in float32."""
    layers = max(1, round(megabytes * 1e6 / (1024 * 1024 * 9 * 4)))
    steps = [nn.Conv2d(3, 1024, 3)] + [nn.Conv2d(1024, 1024, 3) for _ in range(layers)]
    return nn.Sequential(*steps)


def synced(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def bandwidth(group: Group, folder: Path, megabytes: int, repeats: int) -> None:
    """Save and load in every way, in turns."""
    module = wide(megabytes)
    state = module.state_dict()
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    weights = [3.0, *[1.0] * (group.size - 1)]
    model = hetmp.slice_model(module, weights)

    def by_torch() -> None:
        if group.is_root:
            torch.save(state, folder / "torch")
            synced(folder / "torch")

    def by_h5py() -> None:
        if group.is_root:
            with h5py.File(folder / "h5py", "w") as file:
                for name, tensor in state.items():
                    file[name] = tensor.numpy()
            synced(folder / "h5py")

    def torch_back() -> None:
        if group.is_root:
            torch.load(folder / "torch", weights_only=True)

    def h5py_back() -> None:
        if group.is_root:
            with h5py.File(folder / "h5py") as file:
                for name in state:
                    torch.from_numpy(file[name][()])

    writers = ["streamed", *(["parallel"] if has_parallel_hdf5() else [])]
    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        name: (
            lambda name=name: hetmp.save(folder / name, model, writer=name),
            lambda name=name: hetmp.load(folder / name, model),
        )
        for name in writers
    }
    ways |= {"torch": (by_torch, torch_back), "h5py": (by_h5py, h5py_back)}
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
    for _ in range(repeats):
        for name, both in ways.items():
            for action, told in zip(both, seconds[name], strict=True):
                group.control.Barrier()
                began = time.perf_counter()
                action()
                group.control.Barrier()
                told.append(time.perf_counter() - began)
            if group.is_root:
                (folder / name).unlink()
    if not group.is_root:
        return
    print(f"{size / 1e6:.0f} MB, {group.size} ranks, medians of {repeats}")
    print(f"{'way':10s} {'write':>9s} {'MB/s':>6s} {'read':>9s} {'MB/s':>6s}")
    medians = {name: [statistics.median(told) for told in both] for name, both in seconds.items()}
    for name, (write, read) in medians.items():
        print(
            f"{name:10s} {1e3 * write:6.0f} ms {size / 1e6 / write:6.0f} "
            f"{1e3 * read:6.0f} ms {size / 1e6 / read:6.0f}"
        )
    for name in writers:
        for other in ("torch", "h5py"):
            write, read = (a / b for a, b in zip(medians[name], medians[other], strict=True))
            print(f"{name} / {other}: write {write:.2f}, read {read:.2f}")


def stall(group: Group, folder: Path, steps: int, every: int) -> None:
    """Train without saving, saving at once, and saving behind the training, in turns."""
    torch.manual_seed(0)
    module = models.build("resnet18", (3, 32, 32), 10)
    model = hetmp.slice_model(module, [1.0] * group.size)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((16, 3, 32, 32), generator=generator)
    savers = {"saving": Saver(group), "behind": Saver(group, behind=True)}

    def train(kind: str) -> tuple[float, list[float]]:
        """Seconds in all, and how long each save kept the training."""
        kept = []
        group.control.Barrier()
        began = time.perf_counter()
        for step in range(steps):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()
            if kind in savers and step % every == every // 2:
                before = time.perf_counter()
                savers[kind].save(folder / kind, gather(model, optimizer, {}), lambda: None)
                kept.append(time.perf_counter() - before)
        if kind in savers:
            savers[kind].wait()
        group.control.Barrier()
        return time.perf_counter() - began, kept

    names = ("nothing", "saving", "behind")
    told: dict[str, list[tuple[float, list[float]]]] = {name: [] for name in names}
    train("nothing")
    for _ in range(5):
        for name in names:
            told[name].append(train(name))
    if not group.is_root:
        return
    plain = statistics.median(seconds for seconds, _ in told["nothing"])
    step = plain / steps
    saves = steps // every
    held = sum(p.numel() * p.element_size() for p in module.parameters())
    print(
        f"resnet18, {2 * held / 1e6:.0f} MB with the optimizer's state, {group.size} ranks, a "
        f"step {1e3 * step:.0f} ms, {saves} saves in {steps} steps"
    )
    for name in ("saving", "behind"):
        whole = statistics.median(seconds for seconds, _ in told[name])
        kept = statistics.median(k for _, each in told[name] for k in each)
        added = (whole - plain) / saves
        print(
            f"{name}: a save keeps the training for {1e3 * kept:.0f} ms ({kept / step:.2f} of a "
            f"step) and adds {1e3 * added:.0f} ms to the run ({added / step:.2f} of a step)"
        )


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=10)
    args = parser.parse_args()
    group = Group()
    share_cores(group)
    made = tempfile.mkdtemp(prefix="saving-", dir=args.folder) if group.is_root else ""
    folder = Path(group.broadcast_text(made))
    try:
        if args.megabytes:
            bandwidth(group, folder, args.megabytes, args.repeats)
        if args.steps:
            stall(group, folder, args.steps, args.every)
    finally:
        if group.is_root:
            for left in folder.iterdir():
                left.unlink()
            folder.rmdir()


if __name__ == "__main__":
    main()
