"""docs/sliced-model.md and the tests that show its rows: neither has one that the other lacks."""

import ast
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "sliced-model.md"


def rows() -> list[str]:
    """The first column of every table of the page."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [line.split("|")[1].strip() for line in lines if line.startswith("|")]
    return [cell for cell in cells if cell != "operation" and set(cell) != {"-"}]


def marked() -> dict[str, list[str]]:
    """Operation -> the tests that are marked with it."""
    shown: dict[str, list[str]] = {}
    for path in sorted(TESTS.glob("test_*.py")):
        for test in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(test, ast.FunctionDef):
                continue
            for mark in test.decorator_list:
                if isinstance(mark, ast.Call) and getattr(mark.func, "id", "") == "works":
                    assert test.name.startswith("test_"), f"{path.name}: {test.name} never runs"
                    for operation in mark.args:
                        shown.setdefault(ast.literal_eval(operation), []).append(test.name)
    return shown


def test_every_row_is_shown_by_a_test_and_every_such_test_has_a_row():
    page = rows()
    assert len(page) == len(set(page)) > 20
    assert set(page) - set(marked()) == set(), "no test is marked with these rows"
    assert set(marked()) - set(page) == set(), "docs/sliced-model.md has no row of these"


def test_rows_say_what_happens():
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            assert line.count("|") == 3 and len(line.split("|")[2].strip()) > 10, line
