"""What work leaves goes to Drive while it goes on, and trouble with Drive does not stop it."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from agelib import AgelibError
from agelib.config import on_colab
from agelib.drive import sync


class Backup:
    """Pushes each epoch or shard of a folder as soon as it is whole; warns once if it cannot.

    What could not be pushed goes with the next; `push_finished` is for the last.
    """

    # To stop would save nothing: all lies on the disk here, where Colab leaves it for as long as
    # the machine is busy. An idle one is taken away within hours, and takes what is not on Drive
    # along; one that works on may find Drive well again, or made well by a user who read this.

    def __init__(self, local: Path, remote: Path):
        self._local, self._remote = local, remote
        self._owed: list[Path] = []
        self._warned = False

    def push(self, files: Sequence[Path] | None = None) -> None:
        """Pushes the folder, or some files of it and what is still owed."""
        self._owed += files or ()
        try:
            sync.push(self._local, self._remote, only=None if files is None else self._owed)
        except AgelibError as error:
            self._warn(error)
        else:
            self._owed.clear()

    def _warn(self, error: AgelibError) -> None:
        if not self._warned:
            tqdm.write(
                f"agelib: not on Drive yet: {error} No need to stop: work goes on, {self._local} "
                "keeps everything, and Drive is tried again each time; this is said only once.",
                file=sys.stderr,
            )
        self._warned = True


def push_finished(product: Path, local: Path, remote: Path, verify: bool = False) -> list[str]:
    """Pushes a folder once work is done, and says where its product lies if that fails.

    Args:
        product: What one would miss most.
        local: As for `agelib.drive.sync.push`.
        remote: Likewise.
        verify: Likewise.

    Returns:
        The names of the files that were copied.

    Raises:
        AgelibError: If Drive does not get everything.
    """
    try:
        return sync.push(local, remote, verify=verify)
    except AgelibError as error:
        rescue = (
            ", which Colab wipes when it closes: run this cell again to push it, or download it "
            "from the Files pane (the folder on the left)"
            if on_colab()
            else ": run this again to push it"
        )
        raise AgelibError(
            f"{product} is finished, but lies on this machine alone{rescue}. The reason: {error}"
        ) from error
