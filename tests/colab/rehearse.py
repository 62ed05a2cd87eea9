"""Runs the numbered notebooks under Google Colab's conditions: python tests/colab/rehearse.py

Each notebook meets a new machine: the packages and versions that Colab has preinstalled (a virtual
environment that is kept for the next rehearsal), a stand-in for `google.colab`, an empty /content,
and of what came before only the folder that stands for Drive. Setup clones the commit at HEAD, or
unpacks it from agelib.zip on Drive. A project that came as a zip file has no commit: its files are
cloned. 02 and 04 lose their machine half-way and begin again on another.

It fails if a notebook stops, if one writes to standard error anything but progress bars, if
Setup changes a preinstalled package, or if work that reached Drive is done again. It needs Linux,
namespaces (as root has them), git, and the package index.
"""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", help="a Python of Colab's version; default: python3.13")
    parser.add_argument(
        "--no-interruptions",
        dest="interruptions",
        action="store_false",
        help="let 02 and 04 keep their machine",
    )
    parser.add_argument(
        "--output", type=Path, help="where executed notebooks go; default: a temporary folder"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path.home() / ".cache" / "agelib-rehearsal",
        help="where the virtual environment is kept; default: %(default)s",
    )
    return parser.parse_args()


def main() -> int:
    """Rehearses all notebooks; returns the exit status."""
    from colab import environment, machine, rehearsal
    from colab.table import show, tell

    # So that what follows is cleared away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    arguments = parse_arguments()
    output = arguments.output or Path(tempfile.mkdtemp(prefix="agelib-executed-"))
    output.mkdir(parents=True, exist_ok=True)
    made = machine.make_content()
    python = environment.choose_python(arguments.python)
    if (version := environment.python_version(python)) != environment.VERSION:
        print(f"This is Python {version}; Colab has {environment.VERSION} (see --python).")
    if rehearsal.uncommitted():
        print("There are changes that are not committed; they are not rehearsed.")
    start, outcomes = time.monotonic(), []
    try:
        prepared = environment.prepare(python, arguments.cache.absolute())
        with tempfile.TemporaryDirectory(prefix="agelib-rehearsal-") as work:
            stage = rehearsal.Rehearsal(
                prepared, Path(work), output.absolute(), arguments.cache.absolute()
            )
            for notebook in stage.notebooks:
                for outcome in stage.rehearse(notebook, arguments.interruptions):
                    tell(outcome)
                    outcomes.append(outcome)
    finally:
        if made:
            machine.CONTENT.rmdir()
    return show(outcomes, output, time.monotonic() - start)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main())
