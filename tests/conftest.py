import dataclasses
import http.server
import os
import shutil
import sys
import tempfile
import threading
import zipfile
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from skimage import data

from agelib.config import Config
from agelib.datasets import download, sample
from agelib.faces.images import Rejected
from agelib.labels import RACES, age_branch

PORTRAIT = data.astronaut()[:400, 30:430]
_DATA = pytest.StashKey[str]()


def pytest_configure(config):
    # Not a fixture: the notebooks' kernels, which nbval starts, inherit the environment too.
    for name in ("AGELIB_DRIVE", "COLAB_RELEASE_TAG"):
        os.environ.pop(name, None)
    if "AGELIB_DATA" not in os.environ:
        config.stash[_DATA] = os.environ["AGELIB_DATA"] = tempfile.mkdtemp(prefix="agelib-")


def pytest_unconfigure(config):
    if _DATA in config.stash:
        shutil.rmtree(config.stash[_DATA], ignore_errors=True)
        os.environ.pop("AGELIB_DATA", None)


@pytest.fixture(scope="session")
def sample_config(tmp_path_factory):
    """Settings of the sample, whose archives lie extracted in a folder of their own."""
    config = Config.from_profile("sample", data=tmp_path_factory.mktemp("data"))
    sample.make_archives(Path(config.mirror))
    for name in config.sources:
        download.fetch(name, config)
        download.extract(name, config)
    return config


@pytest.fixture(scope="session")
def sample_faces(sample_config):
    """Settings of the sample, whose faces are cropped as well."""
    from agelib.faces.cleaning import clean  # loads TensorFlow

    for name in sample_config.sources:
        clean(name, sample_config)
    return sample_config


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """A stand-in for Colab, whose Drive is a folder here, and not mounted."""
    point = tmp_path / "content" / "drive"
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    monkeypatch.setattr("agelib.disk_errors.MOUNT_POINT", str(point))
    monkeypatch.setattr(Config, "drive", property(lambda _: point / "MyDrive" / "age_gender"))
    calls = []
    google, module = ModuleType("google"), ModuleType("google.colab")
    google.colab = module
    module.drive = SimpleNamespace(
        mount=lambda point, **options: calls.append(("mount", options)),
        flush_and_unmount=lambda: calls.append(("flush",)),
    )
    # Mounted as soon as it was asked for.
    ismount = os.path.ismount
    monkeypatch.setattr(
        "os.path.ismount", lambda path: bool(calls) if str(path) == str(point) else ismount(path)
    )
    monkeypatch.setitem(sys.modules, "google", google)
    monkeypatch.setitem(sys.modules, "google.colab", module)
    return SimpleNamespace(drive=module.drive, calls=calls, point=point)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def mirror():
    """The folder with the real archives, for tests marked `real`."""
    folder = os.environ.get("AGELIB_MIRROR", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("AGELIB_MIRROR names no folder with the real archives")
    return Path(folder)


@pytest.fixture
def own_faces(sample_faces, tmp_path):
    """Settings of the sample in a folder of the test's own, with the cleaned faces in it."""
    shutil.copytree(sample_faces.faces, tmp_path / "sample" / "faces")
    return dataclasses.replace(sample_faces, data=tmp_path)


def build_tiny_model(
    backbone, image_size, weights=None, augment=True, precision="float32", teachers=(), **_
):
    """Builds what `network.build_model` does, with all its outputs, small enough for a test.

    Like the real one it has layers that are random in training, and others that keep statistics.
    """
    from agelib.backend import keras_settings

    with keras_settings(precision):
        return _tiny_model(image_size, augment, teachers)


def _tiny_model(image_size, augment, teachers):
    from agelib.backend import keras, keras_settings
    from agelib.labels import AGE_BRANCHES
    from agelib.model.augment import build_augmentation
    from agelib.model.teachers import Teachers

    layers = keras.layers
    network = keras.Input((image_size, image_size, 3))
    x = layers.Conv2D(8, 5, 4, activation="relu", name="conv")(network)
    x = layers.BatchNormalization(momentum=0.5, name="norm")(x)
    x = layers.Conv2D(16, 5, 4, activation="relu")(x)
    network = keras.Model(network, x, name="backbone")
    inputs = keras.Input((image_size, image_size, 3), name="image", dtype="float32")
    with keras_settings("float32"):  # as in the real one
        image = build_augmentation()(inputs) if augment else inputs
    x = layers.Rescaling(1 / 127.5, -1)(image)
    x = layers.GlobalAveragePooling2D()(network(x))
    x = layers.Dropout(0.3)(x)
    age = layers.Softmax(name="age")(layers.Dense(85, name="age_logits")(x))
    gender = layers.Softmax(name="gender")(layers.Dense(2, name="gender_logits")(x))
    sums = [
        keras.ops.sum(age[:, low - 1 : high], axis=1, keepdims=True) for low, high in AGE_BRANCHES
    ]
    outputs = {"age": age, "age_branch": keras.ops.concatenate(sums, axis=1), "gender": gender}
    if teachers:
        outputs["age"] = Teachers(teachers, name="teachers", dtype="float32")(image, outputs)
    return keras.Model(inputs, outputs, name="tiny")


def reason_of(call, *arguments):
    """Returns why an image is rejected."""
    with pytest.raises(Rejected) as caught:
        call(*arguments)
    return caught.value.reason


def equal_weights(one, other):
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.fixture
def tiny_networks(monkeypatch):
    """Lets training learn with a tiny network, an epoch in a second; gives its function."""
    monkeypatch.setattr("agelib.training.loop.build_model", build_tiny_model)
    return build_tiny_model


@pytest.fixture(scope="session")
def trained(sample_faces, tmp_path_factory):
    """Settings of the sample with a tiny, hardly trained model, and all of it on Drive as well."""
    from agelib import steps

    data = tmp_path_factory.mktemp("trained")
    shutil.copytree(sample_faces.faces, data / "sample" / "faces")
    config = dataclasses.replace(sample_faces, data=data, run="trained", epochs=2)
    for name in config.sources:
        steps.upload(name, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agelib.training.loop.build_model", build_tiny_model)
        steps.train(config)
    steps.evaluate(config)
    return config


def truth(ages, genders, age_high=None):
    """Returns the labels of so many faces, each of a person of its own."""
    ages = np.array(ages)
    highest = ages if age_high is None else np.array(age_high)
    return SimpleNamespace(
        age=ages,
        age_high=highest,
        age_branch=age_branch((ages + highest) // 2),
        gender=np.array(genders),
        race=np.arange(len(ages)) % 5,
        races=RACES,
        person=np.arange(len(ages)),
    )


def sure(ages, genders):
    """Returns the probabilities of a model that doubts nothing."""
    ages = np.array(ages)
    return {
        "age": np.eye(85)[ages - 1],
        "age_branch": np.eye(5)[age_branch(ages)],
        "gender": np.eye(2)[genders],
    }


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory):
    """A model file like those that training leaves; to look at, not to touch."""
    from agelib.backend import keras
    from agelib.model.saved import save_model

    keras.utils.set_random_seed(4)
    path = tmp_path_factory.mktemp("model") / "model.keras"
    note = {"crop": {"crop_size": 64, "margin": 0.3}}
    save_model(build_tiny_model("EfficientNetB0", 64), path, note)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of a portrait, a photo of two faces, one of none, and half a photo."""
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(PORTRAIT).save(folder / "portrait.jpg")
    Image.fromarray(np.hstack([PORTRAIT, PORTRAIT[:, ::-1]])).save(folder / "pair.png")
    Image.fromarray(np.full((200, 300, 3), 90, np.uint8)).save(folder / "wall.png")
    (folder / "cut.jpg").write_bytes((folder / "portrait.jpg").read_bytes()[:3000])
    return folder


def can_be_saved(figure, path):
    """Tells whether a figure becomes a picture, and pyplot knows nothing of it."""
    assert isinstance(figure, Figure)
    figure.savefig(path)
    with Image.open(path) as image:
        return min(image.size) > 30 and not plt.get_fignums()


def one_line(text):
    """Returns what a command said, once sure that it is one line and no traceback."""
    assert text.endswith("\n")
    assert text.count("\n") == 1
    assert "Traceback" not in text
    return text.strip()


@contextmanager
def serving(handler):
    """Runs a web server on this machine; gives its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def answering(content, kind="application/octet-stream", status=200):
    """Returns a handler of a web server that knows one answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", len(content))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    return Handler


def kaggle_layout(images):
    """Returns the files of UTKFace as Kaggle has them, the copies that must not count first."""
    tops = ("utkface_aligned_cropped/crop_part1", "utkface_aligned_cropped/UTKFace", "crop_part1")
    copies = {f"{top}/{name}": b"copy" for top in tops for name in images}
    return copies | {f"UTKFace/{name}": content for name, content in images.items()}


def write_zip(path, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in contents.items():
            file.writestr(name, content)
    return path
