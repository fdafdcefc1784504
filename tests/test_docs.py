"""The pages as a whole: what they name and link to, and the site that is made of them.

That their commands and snippets run is tested in test_docs_commands.py; here is what these should
come to.
"""

import inspect
import os
import re
import subprocess
import sys
from functools import cache

import h5py
import pytest
import torch

import hetmp.data
import hetmp.optim
import hetmp.planner
from helpers.documented import PAGES, ROOT, blocks
from helpers.running import TRAIN, environment, hetmp_run


def python_blocks(page: str) -> list[str]:
    return [block.text for block in blocks(page) if block.language == "python"]


# --- what snippets come to ----------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 4])
def test_the_readmes_training_loop_runs(tmp_path, ranks):
    program = tmp_path / "train.py"
    loop = next(block for block in python_blocks("README.md") if "slice_model" in block)
    saved = f"torch.save(state, '{tmp_path}/state.pt') if MPI.COMM_WORLD.rank == 0 else None\n"
    program.write_text(loop + saved + "print(model)\n")
    done = hetmp_run(module=("-m", "mpi4py", str(program)), ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("SlicedModel, rank") == ranks
    if ranks == 4:
        shown = next(b.text for b in blocks("README.md") if b.text.startswith("SlicedModel"))
        for line in shown.splitlines():
            assert line.removesuffix("...") in done.stdout, line
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["4.weight"].shape == (64, 32, 3, 3)


def test_the_documented_ways_to_read_a_trained_network(tmp_path, capfd):
    out = tmp_path / "runs" / "demo"
    assert hetmp_run(*TRAIN, "--steps", 2, "--out", out).returncode == 0
    told: dict[str, object] = {}
    for page in ("README.md", "docs/formats.md", "docs/checkpoint-format.md"):
        for block in python_blocks(page):
            if "h5py.File" in block:
                names: dict[str, object] = {}
                exec(block.replace("runs/demo", str(out)), names)
                told |= names
    assert told["state"].keys() == {  # type: ignore[attr-defined]
        name for part in ("model", "buffers") for name in h5py.File(out / "model.h5").get(part, ())
    }
    assert capfd.readouterr().out.splitlines()[-1].endswith("True")  # the digest


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_documented_way_to_save_in_a_loop_of_ones_own(tmp_path, ranks):
    program = tmp_path / "save.py"
    (block,) = python_blocks("docs/checkpoints.md")
    program.write_text(block.replace("run.h5", str(tmp_path / "run.h5")) + "print(extra)\n")
    done = hetmp_run(module=("-m", "mpi4py", str(program)), ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("{'epoch': 3, 'note': 'before the long run'}") == ranks


@pytest.mark.parametrize(("ranks", "held"), [(1, ["12170"]), (3, ["4760", "3705", "3705"])])
def test_the_documented_start_layer_by_layer(tmp_path, ranks, held):
    program = tmp_path / "layers.py"
    (block,) = python_blocks("docs/larger-than-one-device.md")
    program.write_text(block)
    done = hetmp_run(module=("-m", "mpi4py", str(program)), ranks=ranks)
    assert done.returncode == 0, done.stderr
    # Ranks may print into one line.
    assert sorted(re.findall("12170|4760|3705", done.stdout)) == sorted(held)


def test_the_configuration_page_has_what_the_program_prints():
    shown = next(b.text for b in blocks("docs/configuration.md") if b.language == "toml")
    done = hetmp_run("train", "--model", "digits", "--data", "digits", "--print-config")
    assert shown == done.stdout, (
        "put what `hetmp train --model digits --data digits --print-config` prints onto the page"
    )


# --- what the text names ------------------------------------------------------------------------


@cache
def flags(command: str) -> set[str]:
    done = hetmp_run(command, "--help")
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"--[a-z-]+", done.stdout))


OF_OTHERS = {
    *("--user", "--scope", "--mem", "--mem-per-cpu"),  # systemd-run, Slurm
}


@pytest.mark.parametrize(
    "page",
    [
        "docs/training.md",
        "docs/larger-than-one-device.md",
        "docs/formats.md",
        "docs/configuration.md",
        "docs/own-model.md",
        "docs/mixed-devices.md",
        "docs/resume.md",
        "docs/notebook.md",
        "docs/numerics.md",
        "docs/when-not.md",
    ],
)
def test_the_options_that_the_text_names_are_of_some_command(page):
    commands = ("train", "evaluate", "predict", "plan", "submit", "inspect", "bench", "profile")
    known = set().union(*map(flags, commands))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / page).read_text()))
    assert named <= known | OF_OTHERS, named - known


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_to_pages_and_headings(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", found.read_text(), flags=re.MULTILINE)
            assert heading in {_anchor(title) for title in titles}, target


def _anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


# --- the site -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as ``make docs`` builds it: a warning is a failure."""
    built = tmp_path_factory.mktemp("site")
    command = re.search(r"sphinx-build (.*) build/docs", (ROOT / "Makefile").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *command[1].split(), built, "-d", built / ".doctrees"],
        cwd=ROOT,
        env=environment(PATH=os.environ["PATH"]),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return built


def test_every_page_is_in_the_site_and_within_reach(site):
    names = {page.removesuffix(".md") for page in PAGES} - {"README"}
    assert all((site / f"{name}.html").exists() for name in names)
    first = (site / "docs/index.html").read_text()
    linked = set(re.findall(r'href="([^"#:]+\.html)', first))
    reached = {os.path.normpath(f"docs/{link}") for link in linked} | {"docs/index.html"}
    assert {f"{name}.html" for name in names} <= reached
    assert "docs/index.html" in (site / "index.html").read_text()


def test_the_site_loads_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|iframe|source)[^>]*\ssrc=\"([^\"]+)\"|"
            r"<link[^>]*rel=\"(?:stylesheet|preload|icon)[^>]*href=\"([^\"]+)\"",
            page.read_text(),
        )
        assert loaded or page.name == "index.html"
        outside = [one for pair in loaded for one in pair if re.match(r"(https?:)?//", one)]
        assert not outside, (page, outside)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()[\"' ]*(https?:)?//", sheet.read_text()), sheet


def test_the_api_has_every_public_name(site):
    text = (site / "docs/api.html").read_text()
    for module in (hetmp, hetmp.data, hetmp.optim, hetmp.planner):
        for name in set(module.__all__) - {"__version__"}:
            if inspect.ismodule(getattr(module, name)):
                continue
            full = f"{module.__name__}.{name}"
            entries = {f'id="{full}"', f'id="hetmp.{name}"'}
            assert any(entry in text for entry in entries), f"docs/api.md should have {full}"


def test_pictures_are_drawn_by_their_script(tmp_path):
    script = ROOT / "docs/pictures.py"
    subprocess.run([sys.executable, script, tmp_path], check=True)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {"slices.svg", "exchanges.svg", "staircase.svg"}
    assert all((ROOT / "docs" / name).exists() for name in drawn)
