"""The rehearsal itself: each notebook on a machine of its own, one after the other."""

import json
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from colab.environment import Environment
from colab.interruptions import INTERRUPTIONS
from colab.machine import Machine
from colab.noise import find_error, find_noise

CHECKOUT = Path(__file__).resolve().parents[2]
FROM_DRIVE = "03"  # the notebook that finds agelib.zip on Drive; the others clone the project


@dataclass
class Outcome:
    """How one notebook fared on one machine."""

    name: str
    project: str = ""
    seconds: float = 0.0
    finished: bool = False
    added: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Rehearsal:
    """Runs notebooks on machines that share nothing but the folder that stands for Drive.

    Args:
        environment: What is preinstalled.
        work: A folder for machines, Drive and the project as committed.
        output: Where executed notebooks go.
        cache: Where pip keeps what it has downloaded.
    """

    def __init__(self, environment: Environment, work: Path, output: Path, cache: Path):
        self._environment, self._work, self._output = environment, work, output
        self._project, self._drive = work / "project", work / "drive"
        (self._drive / "MyDrive").mkdir(parents=True)
        # A copy, since HEAD may move on while the rehearsal runs.
        self._origin = work / "origin.git"
        _copy_bare(self._origin)
        self._commit = _git("rev-parse", "HEAD", folder=self._origin)
        self._project.mkdir()
        archive = ["git", "-C", self._origin, "archive", "HEAD"]
        content = subprocess.run(archive, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", self._project], input=content, check=True)
        about = tomllib.loads((self._project / "pyproject.toml").read_text(encoding="utf-8"))
        self._variables = {
            "REHEARSAL_DRIVE": str(self._drive),
            "PIP_CACHE_DIR": str(cache / "pip"),
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.file://{self._origin}.insteadOf",
            "GIT_CONFIG_VALUE_0": about["project"]["urls"]["Repository"],
        }

    @property
    def notebooks(self) -> list[Path]:
        """The numbered notebooks as committed, in order."""
        return sorted((self._project / "notebooks").glob("0*.ipynb"))

    def rehearse(self, notebook: Path, interrupt: bool) -> Iterator[Outcome]:
        """Runs a notebook, after an interruption if there is one for it."""
        number = notebook.name[:2]
        if not (interrupt and number in INTERRUPTIONS):
            yield self._perform(notebook, notebook.stem)
            return
        interruption = INTERRUPTIONS[number](self._drive / "MyDrive" / "age_gender" / "sample")
        first = self._perform(notebook, f"{notebook.stem}, cut off", interruption.due, True)
        yield first
        if first.problems:
            return
        interruption.begin_again()
        second = self._perform(notebook, notebook.stem, interruption.look)
        if second.finished:
            note, problems = interruption.verdict()
            second.notes.append(note)
            second.problems += problems
        yield second

    def _perform(
        self,
        notebook: Path,
        name: str,
        enough: Callable[[], bool] = lambda: False,
        cut_off: bool = False,
    ) -> Outcome:
        """Runs a notebook on a new machine and looks at what it leaves."""
        outcome, on_drive = Outcome(name), self._drive / "MyDrive" / "agelib.zip"
        if notebook.name.startswith(FROM_DRIVE):
            # As the README has it.
            _git("archive", "--prefix=agelib/", "-o", on_drive, "HEAD", folder=self._origin)
        machine = Machine(self._work / "machine", self._environment.folder, self._variables)
        executed, start = self._output / notebook.name, time.monotonic()
        executed.unlink(missing_ok=True)
        through = machine.run(notebook, executed, enough)
        outcome.seconds = time.monotonic() - start
        self._look_at_packages(outcome)
        if cut_off and through:
            outcome.problems.append("came to its end before it could be cut off")
        elif not cut_off:
            self._look_at_notebook(outcome, executed, machine.log)
        machine.remove()
        on_drive.unlink(missing_ok=True)
        return outcome

    def _look_at_packages(self, outcome: Outcome) -> None:
        """Notes what was installed, and uninstalls it for the next machine."""
        outcome.added, changed = self._environment.changes()
        outcome.problems += [f"a preinstalled package was changed: {line}" for line in changed]
        self._environment.restore()

    def _look_at_notebook(self, outcome: Outcome, executed: Path, log: Path) -> None:
        """Notes where Setup found the project and what went wrong."""
        text = log.read_text(errors="replace")
        if not executed.exists():
            outcome.problems += [
                f"left no notebook in {outcome.seconds:.0f} s",
                *text.splitlines()[-10:],
            ]
            return
        notebook = json.loads(executed.read_text(encoding="utf-8"))
        found = notebook["metadata"]["project"]
        outcome.project = "clone" if found == self._commit else found
        wanted = "Drive" if outcome.name.startswith(FROM_DRIVE) else "clone"
        if outcome.project != wanted:
            outcome.problems.append(
                f"Setup brought {found or 'nothing'} to /content/agelib, not the {wanted}"
            )
        error = find_error(notebook)
        outcome.finished = not error
        outcome.problems += [error] * bool(error) + find_noise(notebook, text)


def uncommitted() -> bool:
    """Tells whether the checkout differs from its commit, which alone is rehearsed."""
    return (CHECKOUT / ".git").exists() and bool(
        _git("status", "--porcelain", "--untracked-files=no")
    )


def _copy_bare(target: Path) -> None:
    """Makes a repository of the checkout's commits; of an unpacked agelib.zip, of its files."""
    if (CHECKOUT / ".git").exists():
        _git("clone", "--quiet", "--bare", f"file://{CHECKOUT}", target)
        return
    _git("init", "--quiet", "--bare", target)
    place = ("--git-dir", target, "--work-tree", CHECKOUT)
    author = ("-c", "user.name=rehearsal", "-c", "user.email=rehearsal@localhost")
    _git(*place, "add", "--all")
    _git(*place, *author, "commit", "--quiet", "-m", "The project as it was unpacked")


def _git(*arguments: str | Path, folder: Path = CHECKOUT) -> str:
    done = subprocess.run(
        ["git", "-C", folder, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()
