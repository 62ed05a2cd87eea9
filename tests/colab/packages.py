"""What a notebook did to the installed packages: it may add some, and change none."""

from typing import NamedTuple


class Changes(NamedTuple):
    """Packages that were added, with versions, and a line for each one that is not as it was."""

    added: dict[str, str]
    changed: list[str]


def compare(before: dict[str, str], after: dict[str, str]) -> Changes:
    """Compares two lists of packages.

    Args:
        before: Name -> version, as the machine has them preinstalled.
        after: The same when the notebook is through.
    """
    added = {name: after[name] for name in sorted(after.keys() - before.keys())}
    changed = [
        f"{name} {before[name]} -> {after.get(name, 'removed')}"
        for name in sorted(before)
        if after.get(name) != before[name]
    ]
    return Changes(added, changed)
