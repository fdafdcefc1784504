"""The page of a real run in a real browser: it loads nothing, can be read, and is well laid out."""

import itertools
import json
import re
import shutil

import pytest

from helpers.running import TRAIN, hetmp_run

CONTRAST = 4.5
"""Of text and its ground, as WCAG 2 asks of level AA."""

CONTRASTS = r"""() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const told = rgba(getComputedStyle(e).backgroundColor);
      if (told[3] === 255) return told;
    }
    return [255, 255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("desc") || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const inSvg = element.closest("svg") !== null;
    const [a, b] = [rgba(inSvg ? style.fill : style.color), ground(element)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push({text: node.data.trim(), inSvg, ratio});
  }
  return found;
}"""


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of a real run on three ranks, with its report."""
    folder = tmp_path_factory.mktemp("browser") / "run"
    flags = ("--weights", "70,25,5", "--steps", 24, "--slowdown", "1,1,3", "--out", folder)
    done = hetmp_run(*TRAIN, *flags, ranks=3, timeout=240)
    assert done.returncode == 0, done.stderr
    done = hetmp_run("report", folder)
    assert done.returncode == 0, done.stderr
    assert "--slowdown 1,1,3" in " ".join(done.stdout.split())
    return folder


@pytest.fixture(scope="module")
def browser():
    """A Chromium; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if program is None:
        pytest.skip("no chromium is installed")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, out):
    """The report, opened; nothing else may be asked for, and nothing may go wrong."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    asked, wrong = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    address = (out / "report" / "report.html").as_uri()
    opened.goto(address)
    yield opened
    assert asked == [address]
    assert wrong == []
    opened.close()


def test_a_real_run_has_every_picture_but_the_predicted(out):
    names = {file.stem for file in (out / "report").glob("*.png")}
    assert names == {
        "loss", "accuracy", "throughput", "ranks", "layers", "partition", "memory", "exchanges",
    }  # fmt: skip


def test_the_page_has_the_figures_of_the_run(page, out):
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "step"]
    assert page.locator("h1").inner_text() == "digits on digits, 3 ranks"
    rows = page.locator("figure", has_text="Time by rank in figures").locator("tbody tr")
    compute = sorted(step["seconds"]["compute"][2] for step in steps[1:])
    shown = float(rows.nth(2).locator("td").nth(0).text_content())
    assert shown == pytest.approx(1e3 * compute[len(compute) // 2], rel=0.01)
    losses = page.locator("figure", has_text="Loss in figures").locator("tbody tr")
    assert losses.count() == len(steps)
    last = float(losses.last.locator("td").first.text_content())
    assert last == pytest.approx(steps[-1]["loss"], rel=0.01)


def test_every_picture_has_a_name_and_words(page):
    names = []
    for figure in page.get_by_role("figure").all():
        heading = figure.get_by_role("heading").inner_text()
        snapshot = figure.aria_snapshot()
        assert snapshot.startswith(f'- figure "{heading}"')
        picture = figure.get_by_role("img")
        assert picture.count() == 1
        assert picture.get_attribute("aria-label") == heading
        words = page.locator(f"#{picture.get_attribute('aria-describedby')}").text_content()
        assert re.search(r"\d", words) and words.endswith(".")
        assert words in figure.locator("figcaption").inner_text()
        names.append(heading)
    assert len(names) == 8 and len(set(names)) == 8
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        assert page.get_by_role(landmark).count() == 1


def test_headings_are_in_order(page):
    levels = page.eval_on_selector_all(
        "h1, h2, h3, h4, h5, h6", "all => all.map(e => +e.tagName[1])"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.eval_on_selector_all("details", "all => all.forEach(e => e.open = true)")
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") is (scheme == "light")
    found = page.evaluate(CONTRASTS)
    assert len([one for one in found if one["inSvg"]]) > 60
    assert len([one for one in found if not one["inSvg"]]) > 200
    assert [one for one in found if one["ratio"] < CONTRAST] == []


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_sticks_out(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.eval_on_selector_all("details", "all => all.forEach(e => e.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What is wider scrolls within its own box, and can be scrolled by keyboard.
    wide = page.locator(".wide").all()
    assert wide and all(box.get_attribute("tabindex") == "0" for box in wide)
    outside = page.eval_on_selector_all(
        "svg", "all => all.filter(e => [...e.querySelectorAll('text')].some(t => {"
        " const [a, b] = [t.getBoundingClientRect(), e.getBoundingClientRect()];"
        " return a.left < b.left - 2 || a.right > b.right + 2 || a.top < b.top - 2"
        " || a.bottom > b.bottom + 2})).map(e => e.getAttribute('aria-label'))"
    )  # fmt: skip
    assert outside == []


def test_tables_open_by_keyboard(page):
    details = page.locator("details").first
    assert not details.get_by_role("table").is_visible()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    page.keyboard.press("Enter")
    assert details.get_by_role("table").is_visible()
    page.keyboard.press("Enter")
    assert not details.get_by_role("table").is_visible()


def test_it_prints_with_its_tables(page):
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    assert all(one["ratio"] >= CONTRAST for one in page.evaluate(CONTRASTS))
    assert not page.get_by_role("navigation").is_visible()
    seen = page.eval_on_selector_all(
        "details:not(.long) table", "all => all.map(e => e.checkVisibility())"
    )
    assert len(seen) >= 6 and all(seen)
    pages = len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4")))
    assert 3 <= pages <= 12
