"""What is computed of a metrics file: its parts, the medians, the curves."""

import json
import math

import numpy as np
import pytest

from helpers import recorded
from hetmp.core.errors import HetmpError
from hetmp.tools.report.head import ended, facts
from hetmp.tools.report.measures import WINDOWS, curve, members, shares, step_times, throughput
from hetmp.tools.report.reading import read_run, read_runs
from hetmp.tools.report.situation import situation


def run_of(tmp_path, records):
    return read_run(recorded.written(tmp_path / "run", records) / "metrics.jsonl")


def test_the_first_step_does_not_count(tmp_path):
    steps = [recorded.step(0, [9.0, 9.0]), *(recorded.step(i, [0.2, 0.1]) for i in range(1, 6))]
    run = run_of(tmp_path, [recorded.run(recorded.plan(2), steps=6), *steps])
    times = step_times(run.last)
    assert times.counted == 5
    assert times.median["compute"].tolist() == [0.2, 0.1]
    assert times.median["waiting"] == pytest.approx([0.0, 0.1])
    assert times.total["compute"] == pytest.approx([10.0, 9.5])
    assert times.step == pytest.approx(0.21)
    assert times.images_per_second == pytest.approx(64 / 0.21)


def test_a_single_step_counts_where_there_is_no_other(tmp_path):
    run = run_of(tmp_path, [recorded.run(recorded.plan(2), steps=9), recorded.step(0, [0.1, 0.1])])
    assert step_times(run.last).counted == 1


def test_figures_by_rank_are_of_the_members(tmp_path):
    plan = recorded.plan(5, left_out=(1, 3))
    run = run_of(tmp_path, recorded.whole_run(plan, [0.1, 0.1, 0.2]))
    assert members(run.last) == (0, 2, 4)
    assert sum(shares(run.last)) == pytest.approx(1)
    about = situation(run.last)
    assert about.ranks == (0, 2, 4) and about.left_out == (1, 3)


def test_layers_that_are_whole_are_no_share(tmp_path):
    plan = recorded.plan(2, 2, whole=(0,))
    run = run_of(tmp_path, recorded.whole_run(plan, [0.1, 0.1]))
    counts = plan["layers"][1]["counts"]
    assert shares(run.last) == pytest.approx([count / sum(counts) for count in counts])


def test_a_resumed_run_is_of_its_last_part(tmp_path):
    three, two = recorded.plan(3), recorded.plan(2)
    records = [
        recorded.run(three, steps=40),
        *(recorded.step(i, [0.3, 0.3, 0.3]) for i in range(20)),
        {"kind": "stopped", "steps": 20, "loss": 1.0},
        recorded.run(two, steps=40, resumed=20),
        *(recorded.step(i, [0.1, 0.1]) for i in range(20, 40)),
        recorded.end(40),
    ]
    run = run_of(tmp_path, records)
    assert len(run.parts) == 2 and len(run.steps) == 40
    assert members(run.last) == (0, 1)
    assert step_times(run.last).median["compute"].tolist() == [0.1, 0.1]
    steps, speeds = throughput(run)
    assert steps.tolist() == [*range(2, 21), *range(22, 41)]  # each part's first is not counted
    assert speeds[0] == pytest.approx(64 / 0.31) and speeds[-1] == pytest.approx(64 / 0.11)
    assert ended(run).startswith("finished after 40 steps")
    told = dict(facts(run))
    assert told["parts"][:2] == (
        "20 steps from step 0 on 3 ranks",
        "20 steps from step 20 on 2 ranks",
    )


def test_a_part_that_took_no_step_leaves_the_one_before(tmp_path):
    records = recorded.whole_run(recorded.plan(2), [0.1, 0.1])[:-1]
    run = run_of(tmp_path, [*records, recorded.run(recorded.plan(3), steps=80, resumed=40)])
    assert members(run.last) == (0, 1)
    assert "cut off, or is still going" in ended(run)


def test_older_runs_have_the_batch_size_alone(tmp_path):
    records = recorded.whole_run(recorded.plan(2), [0.1, 0.1], batch_size=32)
    for record in records:
        record.pop("images", None)
        record.pop("time", None)
        if record["kind"] == "step":
            del record["seconds"]["reading"]
    run = run_of(
        tmp_path, [record for record in records if record["kind"] not in ("layers", "memory")]
    )
    times = step_times(run.last)
    assert times.images_per_second == pytest.approx(32 / 0.11)
    assert times.median["reading"].tolist() == [0.0, 0.0]


def test_numbers_that_were_not_finite(tmp_path):
    steps = [recorded.step(i, [0.1, 0.1]) for i in range(4)]
    steps[2] |= {"loss": None, "skipped": True}
    run = run_of(tmp_path, [recorded.run(recorded.plan(2), steps=4), *steps])
    assert math.isnan(run.steps[2].loss)
    assert run.steps[2].skipped


def test_a_curve_is_medians_and_quartiles():
    steps = np.arange(1.0, 10 * WINDOWS + 1)
    found = curve(steps, steps % 10)  # each window has 1 to 9 and 0
    assert len(found.steps) == WINDOWS and found.per_window == 10
    assert set(found.median.tolist()) == {4.5}
    assert set(found.low.tolist()) == {2.25} and set(found.high.tolist()) == {6.75}
    assert found.steps[:2].tolist() == [5.5, 15.5]


def test_a_curve_of_few_steps_is_the_steps():
    found = curve(np.array([1.0, 2.0, 3.0]), np.array([5.0, np.nan, 4.0]))
    assert found.steps.tolist() == [1.0, 3.0] and found.median.tolist() == [5.0, 4.0]
    assert len(curve(np.zeros(0), np.zeros(0)).steps) == 0


# --- files ---------------------------------------------------------------------------------------


def test_a_torn_last_line_is_left_out(tmp_path):
    folder = recorded.written(tmp_path / "run", recorded.whole_run(recorded.plan(2), [0.1, 0.1]))
    path = folder / "metrics.jsonl"
    whole = read_run(path)
    path.write_text(path.read_text()[:-40])
    run = read_run(path)
    assert run.torn and run.unreadable == (len(path.read_text().splitlines()),)
    assert len(run.steps) == len(whole.steps) and run.ending is None
    assert dict(facts(run))["file"] == ("its last line is torn and left out",)


def test_damaged_lines_are_left_out_and_told(tmp_path):
    records = recorded.whole_run(recorded.plan(2), [0.1, 0.1], steps=6)
    lines = [json.dumps(record) for record in records]
    lines[3] = lines[3][:50]
    lines[4] = lines[4].replace('"compute": [', '"compute": ["much", ')
    lines.insert(5, "[1, 2, 3]")
    lines.insert(6, json.dumps({"kind": "of a later version", "figure": 1}))
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(lines) + "\n")
    run = read_run(path)
    assert run.unreadable == (4, 5, 6) and not run.torn
    assert len(run.steps) == 4
    assert dict(facts(run))["file"] == ("3 lines cannot be read and are left out: 4 to 6",)


def test_steps_without_a_first_record(tmp_path):
    run = run_of(tmp_path, [recorded.step(i, [0.1, 0.2]) for i in range(5)])
    assert run.record is None and members(run.last) == (0, 1)
    assert "its first line is missing" in dict(facts(run))["record"][0]


BAD = {
    "nothing there": (None, "does not exist"),
    "an empty file": ("", "is empty"),
    "a torn first line": ('{"kind": "run", "started', "torn in its first line"),
    "something else": ("[tool]\nname = 'x'\n", "not a metrics file of hetmp"),
    "other JSON": ('{"name": 1}\n{"name": 2}\n', "not a metrics file of hetmp"),
    "bytes": (b"\x89HDF\r\n\x1a\n\x00\x00", "not a metrics file of hetmp"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_are_no_run(tmp_path, case):
    told, words = BAD[case]
    path = tmp_path / "metrics.jsonl"
    if told is not None:
        path.write_bytes(told if isinstance(told, bytes) else told.encode())
    with pytest.raises(HetmpError, match=words) as caught:
        read_runs([path])
    assert str(path) in str(caught.value)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(HetmpError, match=r"has no metrics.jsonl"):
        read_runs([tmp_path])


def test_runs_have_labels_of_their_own(tmp_path):
    records = recorded.whole_run(recorded.plan(2), [0.1, 0.1])
    folders = [tmp_path / name for name in ("a/run", "b/run", "other")]
    for folder in folders:
        recorded.written(folder, records)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes((folders[0] / "metrics.jsonl").read_bytes())
    runs = read_runs([folders[0], folders[1] / "metrics.jsonl", folders[2], copy])
    assert [run.label for run in runs] == ["a/run", "b/run", "other", "copy"]
    with pytest.raises(HetmpError, match="are the same run"):
        read_runs([folders[0], folders[0] / "metrics.jsonl"])
