"""Which tests run on how many ranks: every case on 3 or more, some of a table on every number."""

from collections import Counter
from types import SimpleNamespace

import pytest

import conftest
from conftest import SIZES, runs_on


def item(*marks, case=None, name="test_a"):
    """Stands for a test as pytest collects it: what is asked of it is its marks and its case."""
    marked = {mark.name: mark.mark if hasattr(mark, "mark") else mark for mark in marks}
    made = SimpleNamespace(nodeid=f"tests/test_x.py::{name}[{case}]")
    made.get_closest_marker = marked.get
    if case is not None:
        made.callspec = SimpleNamespace(indices={"number": case})
    return made


def sizes(test):
    return [size for size in SIZES if runs_on(test, size)]


@pytest.fixture(params=[True, False], ids=["sampled", "all"])
def sampled(request, monkeypatch):
    monkeypatch.setattr(conftest, "SAMPLED", request.param)
    return request.param


@pytest.mark.parametrize(
    ("marks", "allowed"),
    [
        ((pytest.mark.mpi,), [1, 2, 3, 4, 5]),
        ((pytest.mark.mpi(min_size=2),), [2, 3, 4, 5]),
        ((pytest.mark.mpi(min_size=3),), [3, 4, 5]),
        ((pytest.mark.mpi, pytest.mark.few_ranks), [1, 2, 3]),
        ((pytest.mark.mpi(min_size=2), pytest.mark.few_ranks), [2, 3]),
    ],
)
def test_a_table_runs_on_three_ranks_or_more_and_its_cases_take_turns_with_the_others(
    sampled, marks, allowed
):
    sizes_by_case = [sizes(item(*marks, case=number)) for number in range(36)]
    if not sampled:
        assert all(each == allowed for each in sizes_by_case)
        return
    assert all(3 in each or (len(each) == 1 and each[0] > 3) for each in sizes_by_case)
    turns = Counter(size for each in sizes_by_case for size in each if size != 3)
    others = [size for size in allowed if size != 3]
    assert turns == dict.fromkeys(others, 12 // len(others))
    fewer = 12 * sum(size < 3 for size in others) // len(others)
    assert Counter(map(len, sizes_by_case)) == Counter({1: 36 - fewer, 2: fewer})


def test_what_is_about_the_number_of_ranks_is_never_sampled(sampled):
    marks = (pytest.mark.mpi(min_size=2), pytest.mark.every_size)
    assert sizes(item(*marks, case=7)) == [2, 3, 4, 5]


def test_tests_of_one_case_are_spread(sampled):
    tests_by_size = Counter(
        size
        for number in range(200)
        for size in sizes(item(pytest.mark.mpi, name=f"test_{number}"))
    )
    assert all(tests_by_size[size] > 30 for size in SIZES)
    if sampled:
        assert tests_by_size[3] == tests_by_size[1] + tests_by_size[2]
        assert tests_by_size[3] + tests_by_size[4] + tests_by_size[5] == 200
    else:
        assert tests_by_size[3] == 200


def test_more_ranks_than_ever_are_no_reason_to_run_nothing():
    """By hand, on a larger machine: what is not sampled runs."""
    test = item(pytest.mark.mpi, pytest.mark.every_size)
    assert runs_on(test, 7)


def test_every_file_is_in_one_part():
    parts = conftest._part_of(2)
    assert set(parts) == {path.name for path in conftest.Path(__file__).parent.glob("test_*.py")}
    assert set(parts.values()) == {1, 2}
