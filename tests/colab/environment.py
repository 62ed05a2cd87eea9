"""The virtual environment that has what a Colab machine has before a notebook installs anything."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from colab.packages import Changes, compare

VERSION = "3.13"
_HERE = Path(__file__).parent
_REQUIREMENTS = _HERE / "requirements.txt"


@dataclass(frozen=True)
class Environment:
    """A virtual environment and what it had when it was made, name -> version."""

    folder: Path
    preinstalled: dict[str, str]

    def changes(self) -> Changes:
        """Compares what is installed now with what was there at first."""
        return compare(self.preinstalled, _installed(self.folder))

    def restore(self) -> None:
        """Uninstalls what was added and puts back what was changed."""
        changes = self.changes()
        if changes.added:
            _pip(self.folder, "uninstall", "--yes", *changes.added)
        if changes.changed:
            names = [line.split()[0] for line in changes.changed]
            wanted = [f"{name}=={self.preinstalled[name]}" for name in names]
            _pip(self.folder, "install", "--no-deps", *wanted)


def choose_python(wanted: str | None) -> str:
    """Returns the Python to use: the one asked for, Colab's version, or that of this process."""
    for name in (wanted, f"python{VERSION}", sys.executable):
        path = name and shutil.which(name)
        # pyenv leaves commands of versions behind that are not active.
        if path and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
        if name and name == wanted:
            sys.exit(f"{wanted} does not run: give --python the path of a Python {VERSION}.")
    raise AssertionError("the Python of this process always runs")


def python_version(python: str) -> str:
    """Returns, for example, "3.13"."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def prepare(python: str, cache: Path) -> Environment:
    """Makes the environment, or finds it as an earlier rehearsal left it and restores it."""
    key = hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()[:8]
    folder = cache / f"python{python_version(python)}-{key}"
    record = folder / "preinstalled.json"
    if not record.exists():
        print(f"Installing Colab's packages into {folder}, once.", flush=True)
        subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
        _pip(folder, "install", "--only-binary", ":all:", "--requirement", str(_REQUIREMENTS))
        record.write_text(json.dumps(_installed(folder), indent=1))
    _install_stand_in(folder)
    environment = Environment(folder, json.loads(record.read_text()))
    environment.restore()
    return environment


def _install_stand_in(folder: Path) -> None:
    """Puts `google.colab` beside the other packages, where Colab has it."""
    packages = next((folder / "lib").glob("python3*/site-packages"))
    shutil.rmtree(packages / "google" / "colab", ignore_errors=True)
    shutil.copytree(_HERE / "google" / "colab", packages / "google" / "colab")


def _installed(folder: Path) -> dict[str, str]:
    packages = json.loads(_pip(folder, "list", "--format", "json"))
    return {package["name"].lower(): package["version"] for package in packages}


def _pip(folder: Path, command: str, *arguments: str) -> str:
    pip = [folder / "bin" / "python", "-m", "pip", command, "--disable-pip-version-check"]
    quiet = [] if command == "list" else ["--quiet"]
    done = subprocess.run([*pip, *quiet, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"pip {command} failed in {folder}:\n{done.stderr}")
    return done.stdout
