"""The wheel that is built holds the whole package, and nothing that ties it to a machine."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hetmp

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout."""
    pytest.importorskip("scikit_build_core")
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    built = subprocess.run(
        [*command, "--disable-pip-version-check", "--wheel-dir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_is_pure_python_of_the_version_in_the_source(wheel: Path) -> None:
    source = (ROOT / "src" / "hetmp" / "core" / "version.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', source, flags=re.MULTILINE)
    assert version
    assert wheel.name == f"hetmp-{version[1]}-py3-none-any.whl"


def test_wheel_has_every_module_and_template(wheel: Path) -> None:
    package = ROOT / "src"
    files = [
        *package.rglob("hetmp/**/*.py"),
        *package.rglob("hetmp/**/*.pyi"),  # public names are imported by what these say
        *package.rglob("hetmp/**/templates/*.*"),
    ]
    expected = {path.relative_to(package).as_posix() for path in files}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "hetmp/tools/submit/templates/train.sbatch.j2" in expected
    assert "hetmp/tools/report/templates/report.html.j2" in expected
    assert expected <= names
    assert "hetmp/py.typed" in names  # or a user's type checker looks at none of it
    assert not [name for name in names if name.startswith("tests/")]


def test_wheel_installs_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        assert "hetmp = hetmp.cli:main" in archive.read(name).decode()


def test_the_public_names_are_completed_before_torch_is_imported() -> None:
    script = "import sys, hetmp; print(*dir(hetmp)); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(hetmp.__all__)


def test_checkout_is_what_is_imported() -> None:
    """In this environment a new file is seen without a new install."""
    found = subprocess.run(
        [sys.executable, "-c", "import hetmp; print(hetmp.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT / "tests",
    )
    assert Path(found.stdout.strip()).resolve().is_relative_to(ROOT / "src")
