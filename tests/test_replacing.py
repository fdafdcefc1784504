"""Files that stand under their name only when they are complete."""

import os

import pytest

from hetmp.core.files import replacing


def test_it_takes_the_place_when_it_is_complete(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_fails_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as beside:
        beside.write_text("ne")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


def test_a_folder_that_is_missing_is_the_writers_own_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "no" / "a") as beside:
        beside.write_text("new")


def test_two_at_once_have_files_of_their_own(tmp_path):
    path = tmp_path / "a.json"
    with replacing(path, contended=True) as first, replacing(path, contended=True) as second:
        first.write_text("first")
        second.write_text("second, longer")
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["a.json"]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "a.json"
    link.symlink_to("there/b.json")
    with replacing(link) as beside:
        beside.write_text("new")
    assert link.is_symlink() and (tmp_path / "there" / "b.json").read_text() == "new"


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with replacing(pipe) as beside:
        beside.write_text("new")
    assert os.read(reader, 9) == b"new" and pipe.is_fifo()
    os.close(reader)
