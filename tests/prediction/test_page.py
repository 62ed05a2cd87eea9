import base64
import builtins
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from conftest import PORTRAIT, one_line
from PIL import Image

import agelib
from agelib.__main__ import main
from agelib.model.saved import PRETRAINED
from agelib.prediction import page as serve
from agelib.prediction.estimator import Estimator
from agelib.prediction.page import predict_as_html

ROOT = Path(agelib.__file__).parents[1]


@pytest.fixture(scope="module")
def album(photos, tmp_path_factory):
    """The photos, and files that are none."""
    folder = shutil.copytree(photos, tmp_path_factory.mktemp("album"), dirs_exist_ok=True)
    (folder / "<b>.jpg").write_bytes(b"no photo")
    (folder / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (folder / "large.jpg").write_bytes((folder / "portrait.jpg").read_bytes() + bytes(21 * 2**20))
    return folder


# The command


@pytest.mark.parametrize("found", [None, SimpleNamespace(__version__="6.9.0")])
def test_gradio_is_asked_for_where_it_is_missing_or_old(monkeypatch, capsys, found):
    monkeypatch.setitem(sys.modules, "gradio", found)
    assert main(["serve", "--port", str(free_port())]) == 1
    assert one_line(capsys.readouterr().err) == (
        'agelib: The page needs Gradio 6.18 or later: pip install "gradio>=6.18".'
    )


def test_a_port_that_is_taken_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--port", port]) == 1
    line = one_line(capsys.readouterr().err)
    assert line.startswith(f"agelib: Port {port} of 127.0.0.1 is taken")


def test_an_address_of_the_other_kind_is_refused(capsys):
    assert main(["serve", "--port", str(free_port()), "--host", "::1"]) == 1
    assert "is an address of IPv6" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b"])
def test_the_address_of_another_machine_is_named(capsys, host):
    assert main(["serve", "--port", str(free_port()), "--host", host]) == 1
    assert f"of {host} is taken, or that is no address of" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("port", ["0", "65536", "-1"])
def test_a_port_that_cannot_be_is_named(capsys, port):
    assert main(["serve", "--port", port]) == 1
    assert f"The port is {port}, but must be" in one_line(capsys.readouterr().err)


def test_this_machine_alone_is_let_in_unless_asked_otherwise(monkeypatch):
    asked = []
    monkeypatch.setattr("agelib.prediction.page.serve", lambda *arguments: asked.append(arguments))
    main(["serve"])
    main(["serve", "--model", "my.keras", "--host", "0.0.0.0", "--port", "80"])
    assert asked == [(PRETRAINED, "127.0.0.1", 7860), (Path("my.keras"), "0.0.0.0", 80)]


@pytest.mark.slow
def test_a_page_that_is_stopped_leaves_nothing_behind(album, tmp_path):
    pytest.importorskip("gradio", reason="the page is an extra")
    port = free_port()
    page = subprocess.Popen(
        [sys.executable, "-m", "agelib", "serve", "--port", str(port)],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert page.stdout.readline() == f"model: {PRETRAINED}\n"
        assert f"http://127.0.0.1:{port}/" in page.stdout.readline()
        # Uploaded, and never asked about.
        assert upload(f"http://127.0.0.1:{port}/", album / "portrait.jpg").ok
        assert [path.name for path in tmp_path.rglob("*.jpg")] == ["portrait.jpg"]
        page.send_signal(signal.SIGTERM)
        _, errors = page.communicate(timeout=60)
    finally:
        page.kill()
    assert page.returncode == 130
    assert one_line(errors).startswith("agelib: stopped")
    assert list(tmp_path.glob("agelib-page-*")) == []
    assert list(tmp_path.rglob("*.jpg")) == []


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def upload(url, path):
    with open(path, "rb") as file:
        return requests.post(f"{url}gradio_api/upload", files={"files": file}, timeout=30)


# The page in a browser


@pytest.fixture(scope="module")
def shipped():
    """The model that comes with agelib."""
    return Estimator()


@pytest.fixture(scope="module")
def page(shipped):
    pytest.importorskip("gradio", reason="the page is an extra")
    page = serve.build_page(shipped)
    serve.launch(page, server_port=free_port(), inline=False)
    yield page
    page.close(verbose=False)


@pytest.fixture(scope="module")
def chromium(album):
    """A browser, and a camera that sees the portrait."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="drives the browser")
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if not all(programs):
        pytest.skip("there is no Chromium with its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    camera = album / "camera.mjpeg"
    frame = io.BytesIO()
    # The page, like a mirror, turns what a camera sees.
    Image.fromarray(PORTRAIT[:, ::-1]).save(frame, "JPEG", quality=95)
    camera.write_bytes(frame.getvalue() * 10)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for option in (
            "headless no-sandbox disable-gpu no-first-run disable-background-networking "
            "disable-component-update disable-sync disable-dev-shm-usage "
            "use-fake-ui-for-media-stream use-fake-device-for-media-stream "
            f"use-file-for-fake-video-capture={camera} user-data-dir={profile}"
        ).split():
            options.add_argument(f"--{option}")
        driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
        yield driver
        driver.quit()


class Visitor:
    """Does and sees what somebody with a browser does and sees."""

    def __init__(self, driver, url):
        self.driver = driver
        driver.get(url)
        self.wait_for("input[type=file]")

    def all(self, css):
        return self.driver.find_elements("css selector", css)

    def until(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not (result := condition()):
            assert time.monotonic() < end, self.all("body")[0].text
            time.sleep(0.1)
        return result

    def wait_for(self, css):
        return self.until(lambda: self.all(css))[0]

    def choose(self, path):
        self.all("input[type=file]")[0].send_keys(str(path))

    def drop(self, path, kind):
        self.driver.execute_script(
            """
            const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], arguments[1], { type: arguments[2] }));
            const place = document.querySelector("#photo button");
            const settings = { bubbles: true, cancelable: true, dataTransfer };
            for (const name of ["dragenter", "dragover", "drop"])
                place.dispatchEvent(new DragEvent(name, settings));
            """,
            base64.b64encode(path.read_bytes()).decode(),
            path.name,
            kind,
        )

    def copy(self, path):
        permissions = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
        self.driver.execute_cdp_cmd("Browser.grantPermissions", permissions)
        self.driver.execute_async_script(
            """
            const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
            const blob = new Blob([bytes], { type: "image/png" });
            const item = new ClipboardItem({ "image/png": blob });
            navigator.clipboard.write([item]).then(arguments[1]);
            """,
            base64.b64encode(path.read_bytes()).decode(),
        )

    def press(self, name):
        script = """
            const buttons = [...document.querySelectorAll("#photo button")];
            const label = (button) => button.ariaLabel ?? button.innerText;
            const button = buttons.find((button) => label(button).includes(arguments[0]));
            button?.click();
            return button !== undefined;
            """
        self.until(lambda: self.driver.execute_script(script, name))

    def watch_camera(self):
        """Waits for the camera to show something."""
        script = "return document.querySelector('#photo video').readyState > 1"
        self.until(lambda: self.driver.execute_script(script))

    def answer(self, start=""):
        """Returns the sentence of the answer, once it is one that starts so, and its faces.

        Both are read in one go, as the page may replace them at any time.
        """
        script = """
            const texts = (css) => [...document.querySelectorAll(css)].map((e) => e.innerText);
            const [sentence] = texts("#answer p");
            const waiting = [undefined, "", "The answer appears here."].includes(sentence);
            if (waiting || !sentence.startsWith(arguments[0])) return null;
            return [sentence, texts("#answer li")];
            """
        return tuple(self.until(lambda: self.driver.execute_script(script, start)))

    def message(self):
        """Returns what pops up; it takes a moment to be there in full."""
        return self.until(lambda: "".join(toast.text for toast in self.all(".toast-body")))


@pytest.fixture
def visitor(page, chromium):
    """A visitor who has just opened the page, and whose photos are soon gone."""
    visitor = Visitor(chromium, page.local_url)
    yield visitor
    visitor.until(lambda: not uploads(), 10)


def uploads():
    return [path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file()]


def answer_of(estimator, path):
    text = predict_as_html(estimator, path)
    return re.search("<p.*?>(.*?)</p>", text)[1], re.findall("<li>(.*?)</li>", text)


def test_a_photo_goes_in_and_the_numbers_come_out(visitor, shipped, album):
    visitor.choose(album / "portrait.jpg")
    sentence, faces = visitor.answer()
    [estimate] = shipped.predict(album / "portrait.jpg")
    assert sentence == "One face found."
    assert faces == [str(estimate)]
    [picture] = visitor.all("#answer img")
    assert picture.get_attribute("naturalWidth") == "640"


def test_one_photo_follows_another(visitor, album):
    for name, start in (("wall.png", "No face"), ("pair.png", "2 faces"), ("cut.jpg", "cut.jpg")):
        visitor.choose(album / name)
        visitor.answer(start)
    assert visitor.all("#answer img") == []


def test_a_photo_can_be_dropped(visitor, shipped, album):
    visitor.drop(album / "pair.png", "image/png")
    assert visitor.answer() == answer_of(shipped, album / "pair.png")


def test_a_photo_can_be_pasted(visitor, album):
    visitor.copy(album / "pair.png")
    visitor.press("Paste from clipboard")
    sentence, faces = visitor.answer()
    assert sentence.startswith("2 faces found")
    assert len(faces) == 2


def test_a_photo_can_be_taken_with_a_camera(visitor):
    visitor.press("Capture from camera")
    visitor.press("Access Webcam")
    visitor.watch_camera()
    visitor.press("capture photo")
    sentence, faces = visitor.answer()
    assert sentence == "One face found."
    assert len(faces) == 1


@pytest.mark.parametrize("name", ["wall.png", "cut.jpg", "drawing.svg", "<b>.jpg"])
def test_what_shows_no_face_gets_a_friendly_sentence(visitor, album, name):
    visitor.choose(album / name)
    sentence, faces = visitor.answer()
    expected = "No face found" if name == "wall.png" else "cannot be read as an image (damaged"
    assert expected in sentence
    assert " try " in sentence.lower()
    assert faces == []
    assert visitor.all(".toast-body") == []


def test_a_file_beyond_the_limit_is_refused_in_the_browser(visitor, album):
    visitor.choose(album / "large.jpg")
    assert "exceed the maximum allowed size of 20.0 Mb" in visitor.message()
    visitor.choose(album / "portrait.jpg")
    assert visitor.answer()[0] == "One face found."


def test_a_file_beyond_the_limit_is_refused_by_the_server(page, album):
    assert upload(page.local_url, album / "large.jpg").status_code == 413
    assert uploads() == []


def test_a_file_of_another_kind_is_refused(visitor, album):
    visitor.drop(album / "wall.png", "text/plain")
    assert "Invalid file type" in visitor.message()


def test_a_fault_of_the_page_itself_is_a_sentence_too(visitor, album, monkeypatch, capsys):
    def fail(estimator, source):
        raise MemoryError

    monkeypatch.setattr(serve, "predict_as_html", fail)
    visitor.choose(album / "portrait.jpg")
    assert visitor.answer()[0] == "Something went wrong with this photo here: try another."
    assert "MemoryError" in capsys.readouterr().err


def test_the_page_says_how_far_off_its_model_is(visitor):
    tests = json.loads(PRETRAINED.with_name("card.json").read_text())["tests"]
    off = [scores["age_mae"] for scores in tests.values()]
    text = visitor.all("body")[0].text
    assert f"off by {min(off):.1f} to {max(off):.1f} years on average" in text
    assert "Do not use it to decide anything about a person." in text


@pytest.mark.parametrize(
    ("name", "mark"), [("As it is", ""), ("Turned", "turned"), ("Dark", "dark")]
)
def test_an_example_is_one_click_away(page, name, mark):
    [button] = [block for block in page.blocks.values() if getattr(block, "value", "") == name]
    [answer] = [fn for fn in page.fns.values() if (button._id, "click") in fn.targets]
    text = answer.fn()
    assert "One face found." in text
    assert ("doubtful" in text) == bool(mark)
    assert mark in text


def test_a_model_may_be_tested_on_one_set_only(tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="the page is an extra")
    model = Path(shutil.copy(PRETRAINED, tmp_path / "model.keras"))
    (tmp_path / "card.json").write_text('{"tests": {"utkface": {"age_mae": 4.7}}}')
    monkeypatch.setattr(serve, "PRETRAINED", model)
    text = json.dumps(serve.build_page(Estimator(model)).config, default=str)
    assert "off by 4.7 to 4.7 years on average" in text


def test_of_another_model_the_page_gives_no_figure(tmp_path):
    pytest.importorskip("gradio", reason="the page is an extra")
    model = shutil.copy(PRETRAINED, tmp_path / "another.keras")
    text = json.dumps(serve.build_page(Estimator(model)).config, default=str)
    assert "can be off by many years" in text
    assert "test faces" not in text


def test_the_page_asks_nothing_of_other_machines(page, chromium, album):
    chromium.get_log("performance")
    visitor = Visitor(chromium, page.local_url)
    visitor.choose(album / "portrait.jpg")
    visitor.answer()
    messages = [json.loads(m["message"])["message"] for m in chromium.get_log("performance")]
    sent = [m for m in messages if m["method"] == "Network.requestWillBeSent"]
    urls = [message["params"]["request"]["url"] for message in sent]
    assert len(urls) > 5
    assert [url for url in urls if not url.startswith((page.local_url, "data:", "blob:"))] == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 may be no address")
def test_the_page_listens_at_one_address_alone(page):
    with socket.create_connection(("127.0.0.1", page.server_port), 5):
        pass
    # Whoever listens at all addresses of a machine listens at this one as well.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", page.server_port), 5)


@pytest.fixture(scope="module")
def estimator(tiny_model_path):
    return Estimator(tiny_model_path)


def test_a_portrait_is_answered_with_what_predict_says(estimator, photos):
    text = predict_as_html(estimator, photos / "portrait.jpg")
    [estimate] = estimator.predict(photos / "portrait.jpg")
    assert "One face found." in text
    assert f"<li>{estimate}</li>" in text
    assert picture_of(text).size == (640, 640)


def picture_of(text):
    [content] = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_faces_are_numbered_from_left_to_right(estimator, photos):
    left, right = estimator.predict(photos / "pair.png")
    assert left.box.left < right.box.left
    text = predict_as_html(estimator, photos / "pair.png")
    assert f"<ol><li>{left}</li><li>{right}</li></ol>" in text
    assert "2 faces found, numbered left to right." in text


def test_a_large_photo_comes_back_as_large_as_the_page_shows_it(estimator, tmp_path):
    photo = tmp_path / "large.png"
    Image.fromarray(PORTRAIT).resize((3000, 3000)).save(photo)
    assert picture_of(predict_as_html(estimator, photo)).size == (800, 800)


def test_a_photo_without_a_face_is_a_sentence(estimator, photos):
    text = predict_as_html(estimator, photos / "wall.png")
    assert "<img" not in text
    assert "No face found: try a photo" in text


@pytest.mark.parametrize("name", ["cut.jpg", "missing.jpg"])
def test_what_is_no_photo_is_named_without_its_folder(estimator, photos, name):
    text = predict_as_html(estimator, photos / name)
    assert f">{name} cannot be read as an image (" in text
    assert str(photos) not in text


def test_html_takes_no_file_name_for_a_tag(estimator, tmp_path):
    text = predict_as_html(estimator, tmp_path / "<img onerror=x>.jpg")
    assert "<img" not in text
    assert "&lt;img onerror=x&gt;.jpg" in text


@pytest.mark.parametrize("missing", ["socksio", "gradio_client"])
def test_a_package_that_gradio_misses_is_named_and_not_gradio(monkeypatch, capsys, missing):
    real = builtins.__import__

    def fail(name, *arguments, **options):
        if name == "gradio":
            raise ImportError(f"{missing} is not installed", name=missing)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", fail)
    assert main(["serve", "--port", str(free_port())]) == 1
    line = one_line(capsys.readouterr().err)
    assert line == f"agelib: Gradio cannot be loaded: {missing} is not installed."


def test_gradio_sees_no_proxy_and_the_process_keeps_its_own(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    seen = []

    def launch(**options):
        seen.append({name for name in os.environ if name.lower().endswith("_proxy")})

    gradio = SimpleNamespace(
        __version__="6.18.0", themes=SimpleNamespace(Default=lambda **options: None)
    )
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    serve.launch(SimpleNamespace(launch=launch))
    assert seen[0].isdisjoint({"ALL_PROXY", "http_proxy"})
    assert os.environ["ALL_PROXY"] == "socks5://127.0.0.1:9"
