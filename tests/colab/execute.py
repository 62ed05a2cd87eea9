"""Executes a notebook inside a machine, with the environment's own nbclient.

Usage: execute.py NOTEBOOK OUTPUT
"""

import sys

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError


def main(source: str, output: str) -> None:
    """Runs all cells and writes the notebook as far as it got."""
    notebook = nbformat.read(source, nbformat.NO_CONVERT)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": "/content"}}
    client = NotebookClient(notebook, kernel_name="python3", timeout=None, resources=resources)
    try:
        client.execute()
    except CellExecutionError:
        pass  # the notebook shows it
    except DeadKernelError:
        print("The kernel died.", file=sys.stderr)
    finally:
        nbformat.write(notebook, output)


main(*sys.argv[1:])
