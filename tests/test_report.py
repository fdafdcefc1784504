"""The report's page and pictures, of runs of every shape."""

import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser

import pytest
from PIL import Image

from helpers import recorded
from helpers.running import environment, hetmp_run, refused
from hetmp.core.errors import HetmpError
from hetmp.tools.report import read_runs, write_report

VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """What a page has: elements with their text, ids and references."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.used, self.headings, self.text = [], [], [], [], {}
        self.attributes = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        told = dict(attributes)
        self.attributes.append((tag, told))
        if "id" in told:
            self.ids.append(told["id"])
        for name, value in told.items():
            self.used += re.findall(r"url\(#([^)]+)\)", value or "")
            if name == "href" and value.startswith("#"):
                self.used.append(value[1:])
            if name in ("aria-labelledby", "aria-describedby"):
                self.used += value.split()
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.setdefault(self.open[-1] if self.open else "", []).append(data)

    def said(self, tag):
        return [text for text in self.text.get(tag, ()) if text.strip()]


def runs():
    """Runs of every shape, by name: their records."""
    resumed = [
        recorded.run(recorded.plan(3, 4), steps=60),
        *(recorded.step(i, [0.05, 0.02, 0.02]) for i in range(30)),
        {"kind": "stopped", "steps": 30, "loss": 1.0},
        recorded.run(recorded.plan(2, 4), steps=60, resumed=30),
        *(recorded.step(i, [0.06, 0.05]) for i in range(30, 60)),
        recorded.end(60),
    ]
    old = [
        {name: value for name, value in record.items() if name not in ("time", "images")}
        for record in recorded.whole_run(recorded.plan(3), [0.1, 0.1, 0.1])
        if record["kind"] not in ("layers", "memory")
    ]
    left_out = recorded.plan(5, 4, left_out=(1, 4), whole=(2,), predicted=True)
    many = recorded.plan(64, 5, left_out=(7,))
    by_images = recorded.plan(3, 4, by_images=(0, 1), whole=(2,))
    deep = recorded.plan(4, 500, whole=(0,), predicted=True)
    cut = [recorded.run(recorded.plan(2), steps=100), recorded.step(0, [0.1, 0.1])]
    nothing = [recorded.run(recorded.plan(2), steps=100)]
    diverged = [record | {"loss": None} for record in map(recorded.step, range(5), [[0.1]] * 5)]
    return {
        "planned": recorded.whole_run(left_out, [0.08, 0.09, 0.1]),
        "one rank": recorded.whole_run(recorded.plan(1), [0.1]),
        "64 ranks": recorded.whole_run(many, [0.1] * 63),
        "by images": recorded.whole_run(by_images, [0.1] * 3),
        "500 layers": recorded.whole_run(deep, [0.1] * 4, steps=1000),
        "cut off": cut,
        "nothing but its head": nothing,
        "resumed": resumed,
        "old": old,
        "no losses": [recorded.run(recorded.plan(1), steps=5), *diverged],
        "without a head": [recorded.step(i, [0.1, 0.2]) for i in range(5)],
    }


def written(tmp_path, *names, out="report"):
    """(content, page) of the report of some of ``runs``."""
    all_runs = runs()
    folders = [recorded.written(tmp_path / name, all_runs[name]) for name in names]
    return write_report(read_runs(folders), tmp_path / out)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """(content, page) of the report of a run of ``runs``, written once."""
    return cache(lambda name: written(tmp_path_factory.mktemp("report"), name))


@pytest.mark.parametrize("name", runs())
def test_a_page_is_well_formed_and_whole(report, name):
    told, path = report(name)
    page = Page(path.read_text())
    assert len(page.ids) == len(set(page.ids))
    assert set(page.used) <= set(page.ids)
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(
        after <= before + 1 for before, after in zip(page.headings, page.headings[1:], strict=False)
    )
    assert {"main", "nav", "header", "footer"} <= {tag for tag, _ in page.attributes}
    for tag, attributes in page.attributes:
        assert tag not in ("script", "img", "iframe", "object")
        for key in ("src", "href"):
            assert attributes.get(key, "#").startswith(("#", "data:"))
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
    pictures = [attributes for tag, attributes in page.attributes if tag == "svg"]
    assert len(pictures) == len(told.pictures)
    assert all(one["role"] == "img" and one["aria-label"] for one in pictures)
    assert path.stat().st_size < 3_000_000
    assert "@import" not in path.read_text() and "url(http" not in path.read_text()


@pytest.mark.parametrize("name", runs())
def test_pictures_lie_beside_the_page(report, name):
    told, path = report(name)
    found = {file.name for file in path.parent.iterdir()}
    assert found == {"report.html", *(f"{picture.name}.png" for picture in told.pictures)}
    for file in path.parent.glob("*.png"):
        with Image.open(file) as picture:
            assert picture.info["dpi"][0] == pytest.approx(150, abs=0.1)
            assert picture.getpixel((0, 0))[:3] == (255, 255, 255)
            assert picture.height < 2500


WANTED = {
    "planned": {"loss", "accuracy", "throughput", "ranks", "layers", "predicted", "partition",
                "memory", "exchanges", "prediction"},
    "one rank": {"loss", "accuracy", "throughput", "ranks", "layers", "partition", "memory"},
    "old": {"loss", "accuracy", "throughput", "ranks", "partition"},
    "cut off": {"loss", "accuracy", "throughput", "ranks", "partition"},
    "nothing but its head": {"partition"},
    "no losses": {"accuracy", "throughput", "ranks", "partition"},
    "without a head": {"loss", "accuracy", "throughput", "ranks"},
}  # fmt: skip


@pytest.mark.parametrize("name", WANTED)
def test_what_is_missing_is_said(report, name):
    told, path = report(name)
    assert {picture.name for picture in told.pictures} == WANTED[name]
    (run,) = told.runs
    missing = [one for section in run.sections for one in section.missing]
    # Where nothing was predicted, it is said once.
    assert len(missing) == 9 - len(WANTED[name] - {"prediction"})
    text = path.read_text()
    assert all(f"<b>{one.title}</b> is not shown." in text for one in missing)
    if name == "old":
        assert "<code>--watch 0</code>" in text and "No memory was recorded" in text


def test_the_same_run_gives_the_same_bytes(report):
    _, first = report("planned")
    _, second = write_report(read_runs([first.parents[1] / "planned"]), first.parents[1] / "again")
    for file in first.parent.iterdir():
        assert file.read_bytes() == (second.parent / file.name).read_bytes(), file.name


def test_tables_have_the_figures_of_the_file(report):
    told, _ = report("planned")
    tables = {picture.name: picture.table for picture in told.pictures}
    assert tables["ranks"].rows[1][:4] == ("rank 2", "90.0", "10.0", "10.0")
    assert tables["partition"].headings[4:] == tuple(f"rank {rank}" for rank in range(5))
    assert tables["partition"].rows[0][4:] == ("16", "left out", "17", "18", "left out")
    assert tables["partition"].rows[2][4:] == ("all", "left out", "all", "all", "left out")
    assert tables["predicted"].rows[-1] == ("the step", "28.0", "110", "3.93")
    # in the mean over the ranks 15 ms of compute, 1 of exchange and 2.5 of waiting
    assert tables["predicted"].rows[0][:3] == ("features.0.conv", "7.00", "18.5")
    prediction = {row[0]: row[1:] for row in tables["prediction"].rows}
    assert prediction["measured"] == ("90.0", "10.0", "10.0", "110", "1.00")
    # what is no layer's exchange or waiting: 28 ms, less 4 of the one and of the other
    assert prediction["predicted"] == ("20.0", "4.00", "4.00", "28.0", "0.255")
    assert prediction["equal split"] == ("–", "–", "–", "150", "1.36")
    layers = {row[:2]: row[2:] for row in tables["layers"].rows}
    assert layers["features.0.conv", "2"] == ("5.00", "10.0", "1.00", "2.50", "0")
    assert layers["(optimizer)", "3"] == ("0", "0", "0", "0", "3.00")
    received = [row for row in tables["exchanges"].rows if row[0] == "features.3.conv"]
    assert received[0][1:5] == ("Allgatherv", "forward", "1", "23.4 KiB")
    assert tables["exchanges"].rows[0] == received[0]  # the largest first
    assert tables["memory"].rows[0][0] == "rank 0" and tables["memory"].rows[-1][-2] == "100 %"
    assert tables["loss"].rows[-1][0] == "40" and tables["loss"].rows[-1][2] == "0.300"


def test_layers_by_batch_show_their_images(report):
    content, path = report("by images")
    (partition,) = (picture for picture in content.pictures if picture.name == "partition")
    assert partition.table.rows[1][2] == "batch"
    assert partition.table.rows[1][4:] == ("16.7 % of images", "33.3 % of images", "50 % of images")
    assert partition.table.rows[3][4:] == ("16", "17", "18")
    assert (
        "2 layers of scheme batch: each rank computes all channels of its part of the images"
        in (partition.caption)
    )
    assert "how many channels and images each has" in partition.caption
    assert "16.7/33.3/50 % of images" in path.read_text()


def test_many_layers_and_ranks_stay_readable(report):
    told, _ = report("500 layers")
    for picture in told.pictures:
        assert picture.height < 13
    layers = next(picture for picture in told.pictures if picture.name == "layers")
    assert "24 of 501 layers that take longest" in layers.caption
    assert len({row[0] for row in layers.table.rows}) == 504  # with what belongs to none
    told, _ = report("64 ranks")
    layers = next(picture for picture in told.pictures if picture.name == "layers")
    assert "Shown are ranks 0, 1, 62 and 63 of 63" in layers.caption
    assert {row[1] for row in layers.table.rows} == {str(r) for r in range(64) if r != 7}


def test_runs_side_by_side(tmp_path):
    names = ("planned", "old", "resumed", "nothing but its head")
    told, path = written(tmp_path, *names)
    assert [row[0] for row in told.table.rows] == list(names)
    assert [row[2] for row in told.table.rows] == ["3", "3", "2", "2"]
    assert [row[3] for row in told.table.rows] == ["40", "40", "60", "0"]
    page = Page(path.read_text())
    assert len(page.ids) == len(set(page.ids)) and set(page.used) <= set(page.ids)
    for name in names:
        assert f"What limits {name}" in page.said("h3")
    files = {file.name for file in path.parent.glob("*.png")}
    assert {"loss.png", "steps.png", "run-1-planned-layers.png", "run-2-old-ranks.png"} <= files


def test_names_are_only_text(tmp_path):
    plan = recorded.plan(2, 2)
    for layer, name in zip(
        plan["layers"], ("_<script>alert(1)</script>", "$x^2$ & '\"` é"), strict=True
    ):
        layer["name"] = name
    records = recorded.whole_run(plan, [0.1, 0.1], model="<b>mine</b>", data="`x`")
    folder = recorded.written(tmp_path / "_a $b$ <i>c & d", records)
    other = recorded.written(tmp_path / "_hidden", records)
    for chosen in ([folder], [folder, other]):
        _, path = write_report(read_runs(chosen), tmp_path / "out")
        page = Page(path.read_text())
        assert not {"script", "i"} & {tag for tag, _ in page.attributes}
        labels = page.said("text")
        assert "$x^2$ & '\"` é" in labels and "_<script>alert(1)</script>" in labels
        if len(chosen) == 2:
            assert "_hidden" in labels  # in the legend, although it begins with an underscore


# --- writing -------------------------------------------------------------------------------------


def test_an_older_report_is_replaced_and_nothing_else(tmp_path):
    _, path = written(tmp_path, "planned")
    (path.parent / "mine.png").write_text("mine")
    before = {file.name for file in path.parent.iterdir()}
    told, path = written(tmp_path, "old")
    after = {file.name for file in path.parent.iterdir()}
    assert "memory.png" in before
    assert after == {"report.html", "mine.png", *(f"{one.name}.png" for one in told.pictures)}


def test_a_report_that_cannot_be_written_leaves_nothing_half_done(tmp_path):
    folder = tmp_path / "report"
    (folder / "report.html" / "in the way").mkdir(parents=True)
    with pytest.raises(HetmpError, match=r"cannot be written .*choose another folder with --out"):
        written(tmp_path, "old")
    assert not [file for file in folder.iterdir() if file.name.endswith(".part")]
    with pytest.raises(HetmpError, match="cannot be written"):
        written(tmp_path, "old", out="old/metrics.jsonl/x")


# --- the command ---------------------------------------------------------------------------------


def test_the_command_says_where_the_report_is_and_what_limits_the_run(tmp_path):
    all_runs = runs()
    one = recorded.written(tmp_path / "one", all_runs["planned"])
    two = recorded.written(tmp_path / "two", all_runs["one rank"])
    done = hetmp_run("report", one)
    assert done.returncode == 0, done.stderr
    assert f"wrote {one}/report/report.html and 10 pictures" in done.stdout
    assert "The ranks are in balance and compute 82 %" in " ".join(done.stdout.split())
    assert done.stderr == ""
    done = hetmp_run("report", one / "metrics.jsonl", two, "--out", tmp_path / "both")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "both" / "report.html").exists()
    said = " ".join(done.stdout.split())
    assert "one The ranks are in balance" in said and "two Computing takes 91 %" in said


def test_the_command_refuses_in_words(tmp_path):
    refused(hetmp_run("report", tmp_path / "nowhere"), "nowhere does not exist", "--out")
    refused(hetmp_run("report", tmp_path), "has no metrics.jsonl")
    assert hetmp_run("report").returncode == 2
    one = recorded.written(tmp_path / "one", runs()["old"])
    refused(hetmp_run("report", one, "--out", "/dev/null/x"), "/dev/null/x", "--out")


def test_the_help_fits_80_columns():
    done = hetmp_run("report", "--help")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "hetmp report runs/demo" in done.stdout


def test_a_login_node_needs_neither_torch_nor_mpi(tmp_path):
    folder = recorded.written(tmp_path / "run", runs()["planned"])
    program = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['mpi4py'] = None  # importing them raises\n"
        f"sys.argv = ['hetmp', 'report', {str(folder)!r}]\n"
        "from hetmp.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "report" / "report.html").exists()
