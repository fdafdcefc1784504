"""Shows what a run of the tests cost: the seconds of each part, and the slowest tests of all.

    python scripts/test_times.py build/times [--files] [--record]

--files adds the files with their tests and seconds. --record writes what each file takes without
MPI to tests/seconds.json, by which `make test` divides the files into parts that take as long.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

SLOWEST = 20
RECORD = Path(__file__).resolve().parents[1] / "tests" / "seconds.json"


@dataclass(frozen=True)
class Test:
    """A test as one part of the run took it."""

    part: str
    file: str
    name: str
    seconds: float


def read(folder: Path) -> tuple[dict[str, float], list[Test]]:
    """Return the seconds of each part, and its tests, from the JUnit files of pytest."""
    parts: dict[str, float] = {}
    tests = []
    for path in sorted(folder.glob("*.xml")):
        suite = ElementTree.parse(path).getroot().find("testsuite")
        if suite is None:
            continue
        parts[path.stem] = float(suite.get("time", 0))
        for case in suite.iter("testcase"):
            file = case.get("classname", "").replace(".", "/") + ".py"
            tests.append(Test(path.stem, file, case.get("name", ""), float(case.get("time", 0))))
    return parts, tests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", action="store_true")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    parts, tests = read(arguments.folder)
    if not tests:
        sys.exit(f"{arguments.folder} has no times of tests: run make test first")
    count = Counter(test.part for test in tests)
    print("\n  seconds  tests  part")
    for part, seconds in parts.items():
        print(f"{seconds:9.1f} {count[part]:6}  {part}")
    print(f"\n  seconds  the {SLOWEST} slowest tests")
    for test in sorted(tests, key=lambda test: -test.seconds)[:SLOWEST]:
        print(f"{test.seconds:9.1f}  {test.part}: {test.file}::{test.name}")
    if arguments.files:
        show_files(tests)
    if arguments.record:
        record(tests)


def show_files(tests: list[Test]) -> None:
    """Print each file with its tests and seconds, over all parts."""
    seconds: Counter[str] = Counter()
    for test in tests:
        seconds[test.file] += test.seconds
    count = Counter(test.file for test in tests)
    print("\n  seconds  tests  file")
    for file, total in seconds.most_common():
        print(f"{total:9.1f} {count[file]:6}  {file}")


def record(tests: list[Test]) -> None:
    """Write the seconds of each file of the parts without MPI, where they count."""
    seconds: Counter[str] = Counter()
    for test in tests:
        if test.part.startswith("plain"):
            seconds[Path(test.file).name] += test.seconds
    rounded = {file: round(total) for file, total in sorted(seconds.items()) if total >= 1}
    RECORD.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")
    print(f"\nwrote {RECORD}")


if __name__ == "__main__":
    main()
