"""Executes a notebook inside a machine, with the environment's own nbclient.

Usage: execute.py NOTEBOOK OUTPUT
"""

import os
import subprocess
import sys

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

HOME = "/content/agelib"


def find_project() -> str:
    """Returns the commit that Setup cloned, "Drive" if it found agelib.zip there, or nothing."""
    if not os.path.exists(f"{HOME}/.git"):
        return "Drive" if os.path.exists(HOME) else ""
    command = ["git", "-C", HOME, "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def main(source: str, output: str) -> None:
    """Runs all cells and writes the notebook as far as it got."""
    notebook = nbformat.read(source, nbformat.NO_CONVERT)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": "/content"}}
    # Colab's kernel has loaded its own package before the first cell runs.
    kernel = ["--InteractiveShellApp.exec_lines=import google.colab"]
    client = NotebookClient(
        notebook, kernel_name="python3", timeout=None, resources=resources, extra_arguments=kernel
    )
    try:
        client.execute()
    except CellExecutionError:
        pass  # the notebook shows it
    except DeadKernelError:
        print("The kernel died.", file=sys.stderr)
    finally:
        notebook.metadata["project"] = find_project()
        nbformat.write(notebook, output)


main(*sys.argv[1:])
