"""Every command and every snippet of the README and the docs runs.

A page is read from top to bottom in a folder of its own that looks like a fresh checkout: commands
are run as they stand, but for what `CHEAPER` and `ADDED` make small; a block whose first line names
a file is written to it; blocks of Python between two commands are one program. A test does one
block, after those before it on the page. What cannot run here stands in `LEFT`, with the reason and
what is looked at instead. A block or command that is neither run nor in that list fails.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import numpy as np
import pytest

from helpers.data_files import digit_parts, write_cifar10, write_cifar100, write_mnist, write_npz
from helpers.data_folders import write_folder, write_hdf5, write_picture, write_scene
from helpers.documented import PAGES, ROOT, RUN, SHOWN, Block, Command, blocks
from helpers.running import COLD, environment, warm_server
from hetmp.cli.program import commands

# --- what is made smaller -----------------------------------------------------------------------


def at_most(limit: int) -> Callable[[re.Match[str]], str]:
    """The flag with its number, but no more than *limit*."""
    return lambda found: f"{found[1]} {min(int(found[2]), limit)}"


CHEAPER: list[tuple[str, str, str | Callable[[re.Match[str]], str]]] = [
    # in which commands, what, by what it is replaced
    ("train", r"--epochs (\d+)", lambda found: f"--epochs {min(2, -(-int(found[1]) // 4))}"),
    ("train|trace|planner.py", r"(--steps) (\d+)", at_most(2)),
    ("train|trace", r"(--batch-size) (\d+)", at_most(64)),
    ("bench|memory.py|planner.py|schemes.py", r"(--batch-size) (\d+)", at_most(8)),
    ("schemes.py", r"--first \d+,\d+", "--first 1"),
    ("memory.py", r"--schemes batch:\d+", "--schemes batch:1"),
    ("profile", r"(--batch-size) (\d+)", at_most(2)),
    ("train", r"(--model unet[\s\S]*) --epochs \d+", r"\1 --steps 2"),
    ("train", r"(--samples) (\d+)", at_most(16)),
    ("train|bench|profile|plan|memory.py", r"--shape 3,\d\d+,\d\d+", "--shape 3,32,32"),
    ("train|bench|profile|plan|memory.py", r"(--classes) (\d+)", at_most(10)),
    ("train", r"--profile-seconds \d+", "--profile-seconds 0.2"),
    ("profile", r"--seconds \d+", "--seconds 0.2"),
    ("bench", r"(--repeats) (\d+)", at_most(1)),
    ("bench", r"batch:\d+", "batch:1"),
    ("depth.py", r"(--layers) (\d+)", at_most(4)),
    ("axes.py", r"--models \S+ --batches \S+ --slowdowns \S+", "--models digits --batches 4"),
    (
        "bench|memory.py|planner.py|schemes.py",
        r"paper-cifar|vgg11 resnet18|vgg11|resnet18",
        "digits",
    ),
    ("train", r"--model (?:paper-cifar|resnet\d+|vgg\d+)", "--model digits"),
    ("train", r"--data synthetic --samples \d+(?=[\s\S]*--plan)", "--data digits"),
    ("profile|plan", r"paper-cifar", "digits"),
    ("bench|memory.py|planner.py|schemes.py", r" --shape \S+ --classes \d+", ""),
]

ADDED = [
    # to which commands, where they have this, and have not this, what is added
    ("train", r"", r"--epochs|--steps|--config|--help", "--steps 2"),
    ("train", r"--data synthetic", r"--samples", "--samples 16"),
    ("train", r"--weights auto|--profiles", r"--profile-s|--profile ", "--profile-seconds 0.2"),
    ("profile", r"", r"--seconds|--show", "--seconds 0.2"),
    ("profile", r"", r"--filters-only|--show", "--filters-only"),
    ("bench", r"", r"--repeats", "--repeats 1"),
    ("bench", r"", r"--batch-size", "--batch-size 8"),
    ("bench", r"", r"--only|--append", "--only sliced,floor"),
    ("depth.py", r"", r"--layers", "--layers 4 --channels 8"),
    ("memory.py", r"", r"--tunings", "--tunings default"),
    ("axes.py", r"", r"--seconds", "--slowdowns 1,3 --seconds 0.2 --repeats 2"),
    ("planner.py", r"", r"--seconds", '--seconds 0.2 --only "equal;planned"'),
    ("planner.py|schemes.py", r"", r"--repeats", "--repeats 2"),
    ("submit", r"", r"--dry-run", "--dry-run"),
]

CALLED = r"(?:hetmp|jobs/mpirun\.sh(?: -\S+ \S+)*) (\w+)|benchmarks/(\w+\.py)"
"""How a page calls a program of the checkout, by whose name the tables know it."""


def cheaper(command: str) -> str:
    """A command with less of everything, as the tables say."""
    found = re.search(CALLED, command)
    if found is None:
        return command
    name = found[1] or found[2]
    for names, old, new in CHEAPER:
        if name in names.split("|"):
            command = re.sub(old, new, command)
    for names, has, has_not, new in ADDED:
        if name in names.split("|") and re.search(has, command) and not re.search(has_not, command):
            command = command.replace(found[0], f"{found[0]} {new}", 1)
    return command


# --- what is left out ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Left:
    """Commands that are not run, why, and the test that looks at them instead."""

    pattern: str
    why: str
    instead: Callable[[str], None]


def target_exists(command: str) -> None:
    """make knows what it is asked for, and would run it."""
    done = subprocess.run(
        ["make", "--dry-run", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def files_exist(command: str) -> None:
    """Files of the checkout that it names are there, and hetmp's flags in it are hetmp's."""
    named = re.findall(r"(?<![\w/.])(?:benchmarks|jobs|scripts|tests|docs)/[\w./-]+", command)
    for name in named:
        assert (ROOT / name).exists(), name
    for name, rest in re.findall(r"hetmp (\w+)([^|)]*)", command):
        flags_exist(name, rest)


def flags_exist(name: str, rest: str) -> None:
    """The flags after a command of hetmp's are that command's."""
    mine, _, passed_on = rest.partition(" -- ")
    assert set(re.findall(r"--[a-z][a-z-]+", mine)) <= flags(name), rest
    if passed_on and name == "submit":
        assert set(re.findall(r"--[a-z][a-z-]+", passed_on)) <= flags("train") | flags("profile")


@cache
def flags(command: str) -> frozenset[str]:
    """The flags of a command of hetmp's."""
    definition = commands.get_command(click.Context(commands), command)
    assert definition is not None, command
    return frozenset(
        flag
        for parameter in definition.params
        for flag in (*parameter.opts, *parameter.secondary_opts)
    ) | {"--help"}


LEFT = [
    Left(r"make( |$)", "it makes an environment or runs all tests", target_exists),
    Left(r"git clone ", "it fetches what is here", files_exist),
    Left(r"conda |\.venv/bin/pip ", "it installs packages", files_exist),
    Left(r"sudo ", "it needs root; test_cluster.py and test_jobs.py start a cluster", files_exist),
    Left(r"(sbatch|srun) ", "it needs Slurm; test_jobs.py submits the same files", files_exist),
    Left(r"ctest |.*pytest ", "it runs tests, this one among them", files_exist),
    Left(r"ulimit ", "it is for a larger network; test_start.py trains under one", files_exist),
    Left(r".*benchmarks/architectures\.py", "it takes an hour", files_exist),
]


# --- the sandbox --------------------------------------------------------------------------------

LINKED = ("benchmarks", "jobs", "scripts", "src", "tests", "Makefile", "pyproject.toml")


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .venv whose hetmp and python start at once."""
    venv = tmp_path_factory.mktemp("venv")
    (venv / "bin").mkdir()
    for folder, link in ((Path(sys.prefix), venv), (Path(sys.prefix) / "bin", venv / "bin")):
        for entry in folder.iterdir():
            if entry.name != "bin":
                (link / entry.name).symlink_to(entry)
    if COLD:
        return venv
    warm_server().install(venv / "bin")
    return venv


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, binaries: Path) -> Path:
    """What the pages' readers have: data of their own, and what ``make demo`` leaves."""
    folder = tmp_path_factory.mktemp("given")
    coloured = digit_parts(channels=3)
    wide = digit_parts(side=32, channels=3)
    write_mnist(folder / "mnist", *digit_parts(side=16))
    write_cifar10(folder, *wide)
    write_cifar100(folder, *wide, kind="python-tar")
    write_npz(folder / "cells.npz", images=coloured[0], labels=coloured[1])
    write_npz(folder / "a.npz", scans=coloured[0], kinds=coloured[1])
    write_npz(folder / "b.npz", scans=coloured[2], kinds=coloured[3])
    write_hdf5(folder / "cells.h5", {"images": coloured[0], "labels": coloured[1]})
    write_hdf5(folder / "a.h5", {"scans": coloured[0], "kinds": coloured[1]})
    write_hdf5(folder / "b.h5", {"scans": coloured[2], "kinds": coloured[3]})
    names = tuple(f"kind{number}" for number in range(10))
    write_folder(folder / "photos", coloured[0], coloured[1], names)
    write_folder(folder / "photos", coloured[2], coloured[3], names, part="test")
    (folder / "new").mkdir()
    for number, image in enumerate(coloured[2][:4]):
        write_picture(folder / "new" / f"scan-{number:04}.png", image)
    rng = np.random.default_rng(0)
    truth = np.repeat(np.repeat(np.arange(12).reshape(3, 4) % 4, 12, axis=0), 12, axis=1)
    cube = truth[..., None] + rng.uniform(0, 0.5, (*truth.shape, 20))
    write_scene(folder / "indian-pines", cube, truth.astype(np.uint8))
    (demo,) = re.findall(r"DEMO_TRAIN := ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text())
    furnish(folder, binaries)
    demo = " ".join(demo.replace("\\", "").split())
    run(cheaper(f"mpirun -n 3 hetmp train {demo}"), folder)
    for name in ("equal", "planned", "hetmp-train-1"):
        shutil.copytree(folder / "runs/demo", folder / "runs" / name)
    (folder / "hosts.txt").write_text("localhost\n")
    return folder


def furnish(folder: Path, binaries: Path) -> None:
    """Make *folder* look like a checkout."""
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(binaries)


def run(script: str, folder: Path, place: str = "") -> str:
    """What a script of shell prints; it must end well."""
    presets = re.findall(r"^ *preset (\w+) (.+)$", (ROOT / "scripts/mpirun.sh").read_text(), re.M)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment(PATH=f"{folder}/.venv/bin:{os.environ['PATH']}", **dict(presets)),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, f"{place}: {script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


# --- the pages ----------------------------------------------------------------------------------

RANKS = {"docs/checkpoints.md": 3, "docs/library.md": 3, "docs/operators.md": 3}
"""Pages whose Python runs on several ranks."""


def steps(page: str) -> list[list[Block]]:
    """The blocks of a page that something is done with; Python between two others is one step."""
    found: list[list[Block]] = []
    for block in blocks(page):
        if block.language not in RUN and not block.file:
            continue
        is_program = block.language == "python" and not block.file
        if found and is_program and found[-1][0].language == "python" and not found[-1][0].file:
            found[-1].append(block)
        else:
            found.append([block])
    return found


STEPS = {f"{page}:{step[0].line}": step for page in PAGES for step in steps(page)}
"""Every step of every page, by its place."""


KEPT: dict[tuple[str, ...], dict[str, bytes]] = {}
"""What commands wrote that need not be given again, on any page, by their words in any order."""

ONCE = {
    r"hetmp bench |benchmarks/\w+\.py|hetmp doctor|hetmp trace ": (),
    r"hetmp profile (?!.*--(profiles|show|out))": ("profile.json",),
}
"""Commands that give the same on every page, and what the later ones on a page read of it."""


class Reader:
    """Goes through a page, in a folder of its own."""

    def __init__(self, page: str, folder: Path) -> None:
        self.page, self.folder = page, folder
        self.ahead = [step for place, step in STEPS.items() if place.rpartition(":")[0] == page]

    def go_to(self, step: list[Block]) -> None:
        """Do what is said up to *step*, if it is not done yet."""
        while step in self.ahead:
            self.do(self.ahead.pop(0))

    def do(self, step: list[Block]) -> None:
        """Write a file, run a program, or run commands one after the other."""
        block = step[0]
        if block.file:
            (self.folder / block.file).write_text(block.text)
        elif block.language == "python":
            name = f"line-{block.line}.py"
            text = "\n".join(block.text for block in step)
            for what, less in (r"\bseconds=\d+", "seconds=0.2"), (r"\brange\(20\)", "range(4)"):
                text = re.sub(what, less, text)
            (self.folder / name).write_text(text)
            ranks = RANKS.get(self.page)
            start = f"mpirun -n {ranks} python -m mpi4py" if ranks else "python"
            run(f"{start} {name}", self.folder, block.place)
        else:
            for command in block.commands:
                if left(command) is None:
                    self.type(command)

    def type(self, command: Command) -> None:
        """Run a command, or put there what it wrote when it was given before."""
        small = cheaper(command.text)
        same = tuple(sorted(small.replace(".venv/bin/", "").split()))
        if same in KEPT:
            for name, content in KEPT[same].items():
                (self.folder / name).write_bytes(content)
            return
        if small.endswith("hetmp doctor"):  # 1: this machine lacks something, as it then says
            small = f"{small} || [ $? = 1 ]"
        refused = command.output.startswith("hetmp: error:")
        said = run(f"! {{ {small}; }} 2>&1" if refused else small, self.folder, command.place)
        if refused:
            assert command.output.split("\n")[0].removesuffix("...").strip() in said, command.place
            return
        for pattern, names in ONCE.items():
            if re.search(pattern, small):
                KEPT[same] = {name: (self.folder / name).read_bytes() for name in names}
        if re.search(COMPARED, command.text):
            assert_like(command, said)


@pytest.fixture(scope="module")
def readers() -> dict[str, Reader]:
    """Those that have begun, by their pages."""
    return {}


@pytest.mark.parametrize("place", STEPS)
def test_what_a_page_says_runs(
    place: str,
    given: Path,
    readers: dict[str, Reader],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    page = place.rpartition(":")[0]
    if page not in readers:
        folder = tmp_path_factory.mktemp("reader")
        shutil.copytree(given, folder, symlinks=True, dirs_exist_ok=True)
        readers[page] = Reader(page, folder)
    readers[page].go_to(STEPS[place])


COMPARED = r"hetmp (explain|models) .*[^#]$"
"""Commands whose output does not depend on the machine: it is what the page shows."""


def assert_like(command: Command, said: str) -> None:
    """The output is what the page shows, but for lines that the page passes over with ``...``."""
    lines = said.splitlines()
    for passage in re.split(r"^\.\.\.\n", command.output.strip() + "\n", flags=re.M):
        shown = [line.rstrip() for line in passage.strip().splitlines()]
        found = [line.rstrip() for line in lines]
        places = [at for at in range(len(found)) if found[at : at + len(shown)] == shown]
        assert places, f"{command.place}: the program does not say\n{passage}\nbut\n{said}"


def left(command: Command) -> Left | None:
    """The entry of the list that a command is in."""
    return next((entry for entry in LEFT if re.match(entry.pattern, command.text)), None)


# --- nothing is forgotten -----------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page: str) -> None:
    for block in blocks(page):
        assert block.language in (*RUN, *SHOWN) or block.language.startswith("{"), (
            f"{block.place}: a block of {block.language or 'no language'}; "
            f"what is run says {', '.join(RUN)}, what is shown {', '.join(SHOWN)}"
        )
        if block.language in SHOWN:
            assert not re.search(r"^\$ ", block.text, re.M), f"{block.place}: console, not text"


@pytest.mark.parametrize("entry", LEFT, ids=lambda entry: entry.pattern)
def test_what_is_not_run_is_looked_at(entry: Left) -> None:
    commands = [
        command
        for page in PAGES
        for block in blocks(page)
        if block.language in ("sh", "console")
        for command in block.commands
        if left(command) is entry
    ]
    assert commands, "no page has such a command: take it from the list"
    for command in commands:
        entry.instead(command.text)
