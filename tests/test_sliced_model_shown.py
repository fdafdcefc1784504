"""What a sliced model and a plan show of themselves, in a terminal and in a notebook."""

import re
import rlcompleter
import shutil
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import hetmp
from helpers.comparison import seeded, world_size
from helpers.works import works
from hetmp.core.colors import rank_colors
from hetmp.slicing.plan import LayerPlan


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Flatten(), nn.Linear(112, 4))


def large(layers: int = 60) -> hetmp.Plan:
    """For three ranks, the second with nothing; every kind of scheme, a name that is markup."""
    planned = []
    for number in range(layers):
        scheme = ("filters", "inputs", "filters", "whole")[number % 4]
        name = f"stage{number // 6}.block{number % 6}.conv"
        counts = (40 + number, 0, 9)
        planned.append(
            LayerPlan(
                name=name if number else "<b>first</b>&amp;",
                kind="Conv2d",
                channels=sum(counts),
                scheme=scheme,
                counts=counts,
            )
        )
    return hetmp.Plan(ranks=3, layers=tuple(planned))


class Read(HTMLParser):
    """Text, tags and styles of a piece of HTML, whose elements must be closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.titles: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        own = dict(attrs)
        assert not any(name.startswith("on") for name in own)
        if "title" in own:
            self.titles.append((own["title"], own["style"]))
        if tag not in ("br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


# --- a plan -------------------------------------------------------------------------------------


def test_a_plan_in_a_notebook_is_a_bar_per_layer():
    plan = large()
    shown = Read(plan._repr_html_())
    text = " ".join(shown.words).replace("/ ", "/")
    assert shown.tags <= {"div", "span", "code", "strong", "br", "wbr"}
    assert "<b>first</b>&amp;" in shown.words
    for layer in plan.layers:
        assert layer.name in shown.words
    assert "40/0/9" in text and text.count("whole") == 2 * 15 + 1
    held = [f"rank {rank}: {count} channels" for rank, count in enumerate(plan.held)]
    assert all(words in text for words in held) and held[1] == "rank 1: 0 channels"
    # A share of nothing is no part of a bar.
    first, second, *_ = (title for title in shown.titles if title[0] != "whole on every rank")
    assert (first[0], second[0]) == ("rank 0: 40", "rank 2: 9")
    for (_, style), count, rank in ((first, 40, 0), (second, 9, 2)):
        assert f"flex:{count} 1 0;background:{rank_colors(3)[rank]}" in style


def test_a_plan_of_many_ranks_is_shaded():
    plan = hetmp.Plan(
        ranks=40,
        layers=(
            LayerPlan(name="a", kind="Conv2d", channels=780, counts=tuple(range(40))),
            LayerPlan(name="b", kind="Conv2d", channels=40, counts=(1,) * 40),
        ),
    )
    shown = Read(plan._repr_html_())
    assert "0 to 39" in shown.words and "rank 39: 40 channels" in shown.words
    assert len(shown.titles) == 39 + 40
    assert len(set(rank_colors(40))) == 40


def test_a_rank_that_is_left_out_is_named():
    plan = large(2).of_members().spread([0, 2, 3], 4)
    assert "rank 1 left out" in Read(plan._repr_html_()).words


GROUNDS = {"light": ("#ffffff", "#111111"), "dark": ("#111418", "#e6e6e6")}


@pytest.mark.parametrize("ground", GROUNDS)
def test_the_picture_fits_a_narrow_window_in_the_colours_around_it(ground, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if program is None:
        pytest.skip("no chromium is installed")
    background, ink = GROUNDS[ground]
    page_file = tmp_path / "page.html"
    page_file.write_text(
        f"<!doctype html><meta charset=utf-8><body style='background:{background};color:{ink};"
        f"font-family:sans-serif'>{large()._repr_html_()}"
    )
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 340, "height": 800})
        page.goto(page_file.as_uri())
        width = page.evaluate("document.documentElement.scrollWidth")
        colors = page.evaluate(
            "[...new Set([...document.querySelectorAll('body *')]"
            ".map(e => getComputedStyle(e).color))]"
        )
        bars = page.evaluate(
            "[...document.querySelectorAll('span[title]')].map(e => e.getBoundingClientRect())"
            ".map(r => [r.width, r.height])"
        )
        browser.close()
    assert width <= 340
    assert colors == [f"rgb({', '.join(str(int(ink[i : i + 2], 16)) for i in (1, 3, 5))})"]
    assert len(bars) == 45 * 2 + 15
    assert all(wide > 2 and high > 8 for wide, high in bars)


def test_names_of_hetmp_complete():
    complete = rlcompleter.Completer({"hetmp": hetmp}).complete
    assert complete("hetmp.slice_mo", 0) == "hetmp.slice_model("
    assert complete("hetmp.mer", 0) == "hetmp.merge_model("


# --- a model ------------------------------------------------------------------------------------


@works("`print(model)`, `print(model.hetmp)`, a notebook's output")
@pytest.mark.mpi
def test_the_runtime_is_a_table_of_layers():
    ranks = world_size()
    weights = [2.0, 0.0, 1.0, 1.0, 1.0][:ranks]
    model = hetmp.slice_model(seeded(small), weights)
    first, *lines = str(model.hetmp).splitlines()
    assert first == f"rank {model.hetmp.group.rank} of {ranks}; verified against the module"
    counts = ["/".join(map(str, layer.counts)) for layer in model.hetmp.plan.layers]
    assert [line.split() for line in lines] == [
        ["path", "kind", "scheme", "channels", "per", "rank"],
        ["0", "Conv2d", "filters", "7", counts[0]],
        ["3", "Linear", "filters", "4", counts[1]],
    ]
    model.hetmp.tuning = hetmp.Tuning(regather=True, overlap=False)
    assert str(model.hetmp).splitlines()[0].endswith("; tuning overlap=False, regather=True")
    assert str(model).startswith("SlicedModel, rank")
    other = hetmp.slice_model(seeded(small), weights, verify=False)
    assert "; not verified: it was not asked for" in str(other.hetmp)


@works("`print(model)`, `print(model.hetmp)`, a notebook's output")
@pytest.mark.mpi
def test_a_model_in_a_notebook_marks_this_rank():
    model = hetmp.slice_model(seeded(small), [1] * world_size())
    html = model._repr_html_()
    assert html == model.hetmp._repr_html_()
    words = Read(html).words
    rank = model.hetmp.group.rank
    marked = [word for word in words if "(this one)" in word]
    assert marked == [f"rank {rank} (this one): {model.hetmp.plan.held[rank]} channels"]
    assert "verified against the module" in words
    assert not re.search("script|http|url", html)
    assert torch.is_tensor(model(torch.zeros(1, 3, 6, 6, dtype=torch.float64)))
