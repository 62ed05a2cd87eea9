"""The repository's public address: kept in pyproject.toml, written from there into the notebooks.

`python -m agelib.address` prints it; `python -m agelib.address https://github.com/NAME/agelib`
changes it in pyproject.toml, in the README and in every notebook's badge and Setup cell.
"""

import re
import sys
import tomllib
from pathlib import Path

from agelib import AgelibError
from agelib.files import atomic

ROOT = Path(__file__).resolve().parents[1]


def read_address(root: Path = ROOT) -> str:
    """Returns the address, for example "https://github.com/NAME/agelib"."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"]


def files_with_address(root: Path = ROOT) -> list[Path]:
    """Returns every file that repeats the address."""
    return [root / "pyproject.toml", root / "README.md", *sorted(root.glob("notebooks/*.ipynb"))]


def write_address(address: str, root: Path = ROOT) -> list[Path]:
    """Writes a new address everywhere.

    Args:
        address: Of a repository on GitHub, since that is where Colab opens notebooks from.
        root: The repository's folder.

    Returns:
        The files that changed.

    Raises:
        AgelibError: If it is no such address.
    """
    match = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", address)
    if not match:
        raise AgelibError(f"{address} is not of the form https://github.com/NAME/REPOSITORY.")
    old = read_address(root).removeprefix("https://github.com/")
    changed = []
    for path in files_with_address(root):
        text = path.read_text(encoding="utf-8")
        # As a plain address, and as colab.research.google.com/github/NAME/REPOSITORY.
        new = re.sub(rf"(github(?:\.com)?)/{re.escape(old)}(?![\w.-])", rf"\1/{match[1]}", text)
        if new != text:
            with atomic(path) as partial:
                partial.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print(read_address())
    else:
        try:
            for path in write_address(sys.argv[1]):
                print(path.relative_to(ROOT))
        except AgelibError as error:
            sys.exit(f"agelib: {error}")
