"""A machine as Colab lends it: an empty /content, a home of its own, and nothing of the last one.

It is a namespace of Linux, in which a new file system lies over /content. What the computer has
there is covered, not touched; and when the first process of the namespace is killed, all of them
and /content are gone at once, as when Colab takes a machine back.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

CONTENT = Path("/content")
LIMIT_S = 3600
_POLL_S = 0.02
_ROOT = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
_NAMESPACE = ["unshare", *_ROOT, "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
# A file system of its own, so that Drive is one of another kind there, as os.path.ismount asks.
_START = 'mount -t tmpfs content /content && cd /content && exec "$@"'
_EXECUTE = Path(__file__).with_name("execute.py")
_KEPT = ("PIP_", "SSL_", "REHEARSAL_", "HTTP_", "HTTPS_", "NO_PROXY", "REQUESTS_", "CURL_")


def make_content() -> bool:
    """Makes sure that machines can be had here.

    Returns:
        Whether /content was made, and is for the caller to remove.
    """
    made = not CONTENT.exists()
    if made and os.geteuid():
        sys.exit("There is no /content to stand for Colab's: make it once, `sudo mkdir /content`.")
    possible = (
        shutil.which("unshare")
        and not subprocess.run(
            [*_NAMESPACE, "mount", "-t", "tmpfs", "content", "/mnt"], capture_output=True
        ).returncode
    )
    if not possible:
        sys.exit(
            "A rehearsal needs namespaces of Linux: run it as root, outside of a container or in a "
            "privileged one, where `unshare --mount --pid --fork --mount-proc true` succeeds."
        )
    if made:
        CONTENT.mkdir()
    return made


class Machine:
    """One machine, for one notebook.

    Args:
        folder: Where its files are kept; must not exist yet.
        environment: The folder of the virtual environment.
        variables: What its environment has beside Colab's own.
    """

    def __init__(self, folder: Path, environment: Path, variables: dict[str, str]):
        self._folder, self._environment = folder, environment
        self.log = folder / "log.txt"
        for name in ("home", "tmp"):
            (folder / name).mkdir(parents=True)
        self._variables = self._colab_variables() | variables

    def run(self, notebook: Path, output: Path, enough: Callable[[], bool]) -> bool:
        """Executes a notebook from the top, unless it is enough before.

        Args:
            notebook: What to execute.
            output: Where the executed notebook goes.
            enough: Asked all the time; once it says yes, the machine is gone.

        Returns:
            Whether the notebook ended by itself.
        """
        python = self._environment / "bin" / "python"
        command = ["sh", "-c", _START, "machine", python, _EXECUTE, notebook, output]
        with open(self.log, "wb") as log:
            process = subprocess.Popen(
                [*_NAMESPACE, *command], env=self._variables, stdout=log, stderr=log
            )
        end = time.monotonic() + LIMIT_S
        try:
            while process.poll() is None and time.monotonic() < end:
                if enough():
                    return False
                time.sleep(_POLL_S)
            return process.returncode is not None
        finally:
            _kill(process)

    def remove(self) -> None:
        """Wipes what it left."""
        shutil.rmtree(self._folder)

    def _colab_variables(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key.upper().startswith(_KEPT)}
        return kept | {
            "PATH": f"{self._environment}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
            ":/sbin:/bin",
            "HOME": str(self._folder / "home"),
            "TMPDIR": str(self._folder / "tmp"),
            "LANG": "C.UTF-8",
            "COLAB_RELEASE_TAG": "release-colab-external-rehearsal",
            "COLAB_GPU": "",
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }


def _kill(process: subprocess.Popen) -> None:
    """Kills the namespace's first process, with which all others go, and waits for their end."""
    if process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children or [process.pid]:
            os.kill(int(child), signal.SIGKILL)
        process.wait()
