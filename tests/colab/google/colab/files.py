"""Files that go from the user's computer to the machine and back.

`REHEARSAL_UPLOADS` names those that the user chooses, separated as in `PATH`; without it the user
chooses none.
"""

import os
from pathlib import Path


def upload(target_dir: str = "") -> dict[str, bytes]:
    """Saves what the user chose in the working directory, and returns names and contents."""
    chosen = filter(None, os.environ.get("REHEARSAL_UPLOADS", "").split(os.pathsep))
    uploaded = {}
    for path in map(Path, chosen):
        saved = _unused(Path(target_dir) / path.name)
        print(f"Saving {path.name} to {saved}")
        saved.write_bytes(path.read_bytes())
        uploaded[str(saved)] = path.read_bytes()
    return uploaded


def download(filename: str) -> None:
    """Offers a file to the browser, which nobody watches here.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if not os.path.exists(filename):
        raise FileNotFoundError(f"Cannot find file: {filename}")


def _unused(path: Path) -> Path:
    """Returns the path, numbered if there is such a file already."""
    free, number = path, 0
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem} ({number}){path.suffix}")
    return free
