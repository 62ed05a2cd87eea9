"""What a notebook shows beside its own output: anything on standard error but progress bars."""

import re

_BAR = re.compile(r"(.*: )? *\d+%\|.*\|.*\[\d+:\d\d.*\]|(.*: )?[\d.]+[kMG]? ?.*\[\d+:\d\d, .*\]")
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# What TensorFlow logs in a notebook is standard output, and so is the standard error of what runs
# after a "!".
_COMPLAINT = re.compile(r"(WARNING|ERROR):|(error|fatal|cp|mv|rm|bash): ")


def find_noise(notebook: dict, log: str = "") -> list[str]:
    """Returns each line that should not be there, with the number of its cell, from 0.

    Args:
        notebook: As nbformat 4 has it, with its outputs.
        log: What the kernel's process itself wrote, which the kernel copies to a cell, or not.
    """
    noise, shown = [], set()
    for i, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", ()):
            lines = _lines(_join(output.get("text", "")))
            shown.update(lines)
            if output.get("name") == "stderr":
                noise += [f"cell {i}: {line}" for line in lines if not _BAR.fullmatch(line)]
            elif output.get("name") == "stdout":
                noise += [f"cell {i}: {line}" for line in lines if _COMPLAINT.match(line)]
    return noise + [f"log: {line}" for line in _lines(log) if line not in shown]


def find_error(notebook: dict) -> str:
    """Returns what stopped a notebook, or nothing."""
    for i, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", ()):
            if output["output_type"] == "error":
                return f"cell {i}: {output['ename']}: {output['evalue']}"
    return ""


def _join(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def _lines(text: str) -> list[str]:
    """Splits at line ends and at the returns by which a bar redraws itself."""
    lines = (line.strip() for line in re.split(r"[\r\n]+", _ESCAPE.sub("", text)))
    return [line for line in lines if line]
