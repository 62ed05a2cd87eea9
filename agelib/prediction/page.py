"""A page in the browser: a photo goes in, the annotated picture and its faces come out.

Gradio, an extra, is loaded only by what builds and shows the page.
"""

import atexit
import base64
import contextlib
import functools
import html
import io
import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from PIL import Image
from skimage import data

from agelib import AgelibError, first_line
from agelib.faces.images import Rejected, read_image
from agelib.model.saved import PRETRAINED
from agelib.plots import annotate
from agelib.prediction.estimator import Estimator

if TYPE_CHECKING:  # loading it would load TensorFlow
    import gradio

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_LOCALHOST = "127.0.0.1"
MAX_UPLOAD = 20 * 2**20  # bytes
_DELAY = 2  # seconds from an answer to the end of its upload
# Seconds: how often to look for uploads that were never asked about, and their age by then.
_SWEEP = 60, 3600
_CSS = """
.gradio-container { max-width: 1100px !important; margin: auto !important }
#answer .html-container { padding: .3em 0 }
#answer p { margin: 0 0 .7em; font-size: 1.1em }
#answer img { display: block; max-width: 100%; max-height: 56vh; border-radius: 8px }
#answer ol { margin: .8em 0; padding-left: 1.6em; list-style: decimal; line-height: 1.7 }
@media (max-width: 640px) {
  h1 { font-size: 1.3em !important }
  #photo { height: 190px !important }
  #answer img { max-height: 38vh }
}
"""

# Longer, and a page that shows the picture smaller makes its labels hard to read.
_PICTURE_SIDE = 800  # pixels


def build_page(estimator: Estimator) -> "gradio.Blocks":
    """Builds the page, to be shown with `launch`.

    Raises:
        AgelibError: If Gradio is missing or too old.
    """
    gradio = _load_gradio()
    wanted = f"a JPEG or PNG of up to {MAX_UPLOAD // 2**20} MB"
    with gradio.Blocks(
        title="agelib", analytics_enabled=False, delete_cache=_SWEEP, fill_width=True
    ) as page:
        gradio.Markdown(f"# How old does a face look?\n\n{_limits(estimator)}")
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300):
                photo = gradio.Image(
                    label="Photo",
                    elem_id="photo",
                    sources=["upload", "webcam", "clipboard"],
                    height=300,
                    placeholder=f"Drop a photo here\n- or -\nchoose {wanted}",
                )
                gradio.Markdown("Or try NASA's portrait of an astronaut of 41 or 42 years:")
                with gradio.Row():
                    buttons = {
                        gradio.Button(name, size="sm", min_width=80): example
                        for name, example in _examples().items()
                    }
            with gradio.Column(scale=3, min_width=300):
                result = gradio.HTML(
                    _paragraph("The answer appears here."), elem_id="answer", padding=False
                )
        # Gradio would decode the file in its own way, and fail in its own words.
        photo.preprocess = lambda upload: Path(upload.path)
        settings = {
            # One after the other, as TensorFlow uses all cores for one; but each of them.
            "concurrency_limit": 1,
            "concurrency_id": "estimator",
            "trigger_mode": "multiple",
            "show_progress_on": [result],
            "api_visibility": "private",
        }
        answer_upload = functools.partial(_answer_upload, estimator)
        photo.upload(answer_upload, photo, [result, photo], **settings)
        for button, example in buttons.items():
            answer = functools.partial(_answer, estimator, example)
            button.click(answer, None, result, **settings)
    return page


def _examples() -> dict[str, Image.Image]:
    """Returns a portrait in the public domain, as it is and made difficult in two ways."""
    portrait = Image.fromarray(data.astronaut())
    dark = portrait.point(lambda value: value // 4)
    return {"As it is": portrait, "Turned": portrait.rotate(30), "Dark": dark}


def _answer(estimator: Estimator, source: Path | Image.Image) -> str:
    try:
        return predict_as_html(estimator, source)
    except Exception:
        # A sentence for the visitor, and the rest for whoever runs the page.
        traceback.print_exc()
        return _paragraph("Something went wrong with this photo here: try another.")


def _answer_upload(estimator: Estimator, path: Path) -> tuple[str, None]:
    """Answers with the result as HTML, and with what empties the place for the photo."""
    try:
        return _answer(estimator, path), None
    finally:
        # The browser fetches it to show it, and the server stumbles if it is gone halfway.
        timer = threading.Timer(_DELAY, _remove, [path])
        timer.daemon = True
        timer.start()


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def _limits(estimator: Estimator) -> str:
    off = "can be off by many years"
    if estimator.path == PRETRAINED:
        tests = json.loads(PRETRAINED.with_name("card.json").read_text())["tests"].values()
        errors = [scores["age_mae"] for scores in tests]
        off = f"was off by {min(errors):.1f} to {max(errors):.1f} years on average on the sets of "
        off += "test faces, and can be off by far more on a single one"
    return (
        f"An estimate says how old a face looks, not how old a person is. It {off}. **Do not use "
        "it to decide anything about a person.** Photos are deleted right after the answer."
    )


def launch(page: "gradio.Blocks", **options: Any) -> None:
    """Shows a page: in a notebook below the cell, elsewhere only under its address.

    Args:
        page: From `build_page`.
        options: Of Gradio's `launch`, such as `server_name` and `server_port`.
    """
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    settings = {
        "theme": _load_gradio().themes.Default(**fonts),
        "css": _CSS,
        "server_name": _LOCALHOST,
        "max_file_size": MAX_UPLOAD,
        "share": False,
        "footer_links": [],
        "quiet": True,
        "ssr_mode": False,
        "prevent_thread_lock": True,
        # Gradio remembers the last answer of so many visitors.
        "state_session_capacity": 1,
    }
    with _without_proxy():
        page.launch(**settings | options)


def serve(model_path: Path, host: str, port: int) -> None:
    """Serves the page until Ctrl-C; at the host 0.0.0.0 other machines see it too.

    Raises:
        AgelibError: If Gradio or the model is missing, or nothing can listen there.
    """
    _check_address(host, port)
    _load_gradio()
    page = build_page(Estimator(model_path))
    launch(page, server_name=host, server_port=port)
    print(f"model: {model_path}\nThe page is at {page.local_url} until Ctrl-C.", flush=True)
    # Whoever ends the process in another way than Ctrl-C wants nothing to remain either.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while True:
            time.sleep(1)
    finally:
        page.close(verbose=False)


def _check_address(host: str, port: int) -> None:
    if not 0 < port < 65536:
        raise AgelibError(f"The port is {port}, but must be from 1 to 65535.")
    if ":" in host:
        raise AgelibError(f"{host} is an address of IPv6, which the page cannot be at: use IPv4.")
    # Gradio wants the port of the machine itself in any case.
    for address in (_LOCALHOST, host):
        try:
            socket.create_server((address, port)).close()
        # A name that cannot be one is an error of another kind.
        except (OSError, UnicodeError, TypeError) as error:
            raise AgelibError(
                f"Port {port} of {address} is taken, or that is no address of this machine: give "
                "another --port or --host."
            ) from error


def _load_gradio() -> ModuleType:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = _scratch()
    wanted = 'The page needs Gradio 6.18 or later: pip install "gradio>=6.18".'
    try:
        with _without_proxy():
            import gradio
    except ImportError as error:
        if error.name == "gradio":
            raise AgelibError(wanted) from error
        raise AgelibError(f"Gradio cannot be loaded: {first_line(error)}.") from error
    # The pages of earlier ones load a script from another machine.
    if tuple(map(int, gradio.__version__.split(".")[:2])) < (6, 18):
        raise AgelibError(wanted)
    return gradio


@contextlib.contextmanager
def _without_proxy() -> Iterator[None]:
    """Hides the proxy: Gradio looks for its own page through it, which no proxy finds."""
    names = [name for name in os.environ if name.lower() in _PROXIES]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


@functools.cache
def _scratch() -> str:
    """Returns a folder for uploads, one a process, which is removed at its end."""
    folder = tempfile.mkdtemp(prefix="agelib-page-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def predict_as_html(estimator: Estimator, source: Path | Image.Image) -> str:
    """Returns the faces of a photo, or why there are none, as HTML that needs no other file."""
    try:
        image = read_image(source)
    except Rejected as error:
        # Where an upload lies is nothing that its sender knows.
        why = str(error).replace(str(source), getattr(source, "name", "The photo"))
        return _paragraph(f"{why} Try another, such as a JPEG or PNG.")
    estimates = estimator.predict(image)
    if not estimates:
        return _paragraph(
            "No face found: try a photo where one is larger, upright and seen from the front."
        )
    count = len(estimates)
    sentence = "One face found." if count == 1 else f"{count} faces found, numbered left to right."
    faces = "".join(f"<li>{html.escape(str(estimate))}</li>" for estimate in estimates)
    note = (
        "In brackets: how probable the answer is, and the ages between which the true age should "
        "be in 80 % of all cases."
    )
    picture = _image(annotate(image, estimates, _PICTURE_SIDE))
    return f"{_paragraph(sentence)}{picture}<ol>{faces}</ol><small>{note}</small>"


def _paragraph(text: str) -> str:
    """Returns text as a paragraph that a screen reader reads out."""
    return f'<p role="status">{html.escape(text)}</p>'


def _image(figure: Figure) -> str:
    # A file of its own would have to be kept until a browser fetches it.
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", pil_kwargs={"quality": 90})
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="The photo with its faces marked" src="data:image/jpeg;base64,{data}">'
