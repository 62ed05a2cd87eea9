"""Who may import whom, and what importing costs."""

import ast
import importlib
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

import agelib

PACKAGE = Path(agelib.__file__).parent
ROOT = PACKAGE.parent
ROOMS = ("datasets", "faces", "drive", "model", "training", "evaluation", "prediction")
# A module imports from floors below its own, and from its own room.
FLOORS = (
    ("", "labels", "backbones", "backend"),
    ("config",),
    ("files",),
    ("disk_errors",),
    ("drive", "datasets"),
    ("faces",),
    ("model",),
    ("training", "evaluation"),
    ("plots",),
    ("prediction",),
    ("steps", "release"),
    ("commands",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "pretrained")


def part(dotted):
    """Returns the room or the top module that a module belongs to; "" is the package itself."""
    return dotted.removeprefix("agelib").lstrip(".").split(".")[0]


def imported(path):
    """Returns the parts of agelib that a module imports when it runs, at its top or later."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    unread = {
        each
        for node in typing
        if ast.unparse(node.test) == "TYPE_CHECKING"
        for each in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in unread:
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "agelib":
            yield from (alias.name if alias.name in LEVEL else "" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("agelib."):
            yield part(node.module)
        elif isinstance(node, ast.Import):
            yield from (part(a.name) for a in node.names if a.name.split(".")[0] == "agelib")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_from_floors_below(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0].replace("__init__", "")
    later = {name for name in imported(path) if name != own and LEVEL[name] >= LEVEL[own]}
    assert not later, f"{own} may not import {', '.join(sorted(later))}"


def test_only_steps_knows_drive():
    knowing = {path.stem for path in MODULES if "drive" in imported(path)}
    assert knowing - {path.stem for path in (PACKAGE / "drive").glob("*.py")} == {"steps"}


def test_no_part_of_the_package_is_on_no_floor():
    names = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in MODULES}
    assert names - {"__init__"} == LEVEL.keys() - {""}


@pytest.mark.parametrize(
    "name",
    [
        "agelib",
        "agelib.steps",
        "agelib.release",
        "agelib.model.imagenet",
        *(f"agelib.{room}" for room in ROOMS),
    ],
)
def test_importing_loads_no_tensorflow(name):
    heavy = {"tensorflow", "keras", "mtcnn", "efficientnet"}
    code = f"import sys, {name}; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_at_most_six_public_names_all_of_which_load(room):
    package = importlib.import_module(f"agelib.{room}")
    assert 0 < len(package.__all__) <= 6
    for name in package.__all__:
        # A module of that name would take its place as soon as anybody imports it.
        assert not (PACKAGE / room / f"{name}.py").exists()
        assert getattr(package, name)


@pytest.mark.slow
def test_the_wheel_holds_every_module(tmp_path):
    # Else pip fetches the setuptools that pyproject.toml asks for.
    is_installed = Version(version("setuptools")) >= Version("77")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps"]
    command += ["--no-build-isolation"] * is_installed
    # A copy: setuptools leaves its build folder beside what it builds.
    shutil.copytree(
        PACKAGE, tmp_path / "project" / "agelib", ignore=shutil.ignore_patterns("*.pyc")
    )
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "project")
    command += ["-w", tmp_path, tmp_path / "project"]
    built = subprocess.run(command, capture_output=True, text=True)
    if not is_installed and "No matching distribution found for setuptools" in built.stderr:
        pytest.skip("there is no network to fetch setuptools from")
    assert not built.returncode, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    found = {path.relative_to(installed).as_posix() for path in installed.glob("agelib/**/*.py")}
    assert found == {path.relative_to(ROOT).as_posix() for path in MODULES}
    assert (installed / "agelib" / "pretrained" / "model.keras").exists()
    code = "import agelib.steps; print(agelib.steps.__file__)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=installed, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == installed / "agelib" / "steps.py"
