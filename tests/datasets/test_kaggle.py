import sys
from types import SimpleNamespace

import pytest
from conftest import answering, kaggle_layout, serving, write_zip

from agelib import AgelibError, files
from agelib.datasets import kaggle, transfer
from agelib.datasets.archives import unpack
from agelib.datasets.tables import DATASETS

UTKFACE = DATASETS["utkface"].archive
IMAGES = {"1_0_0_1.jpg": b"one" * 500, "2_0_0_2.jpg": b"two" * 500}


@pytest.fixture(autouse=True)
def target(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "sleep", lambda _: None)
    return tmp_path / "raw" / UTKFACE.file


@pytest.fixture
def kagglehub(monkeypatch, tmp_path):
    """Installs a kagglehub that does what a test says."""

    def install(dataset_download):
        module = SimpleNamespace(dataset_download=dataset_download)
        monkeypatch.setitem(sys.modules, "kagglehub", module)

    return install


@pytest.fixture
def without_kagglehub(monkeypatch, target):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    target.parent.mkdir()


def unpacked(target):
    folder = target.parent / UTKFACE.folder
    unpack(target, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_kagglehub_has_is_packed_as_the_authors_do(kagglehub, target, tmp_path):
    folder = tmp_path / "versions" / "1"
    for name, content in kaggle_layout(IMAGES).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    asked = []
    kagglehub(lambda name: asked.append(name) or str(folder))
    kaggle.fetch(UTKFACE, target)
    assert unpacked(target) == IMAGES
    assert asked == ["jangedoo/utkface-new"]
    assert (folder / "UTKFace").is_dir()


def test_what_kagglehub_complains_of_is_one_line(kagglehub, target):
    class NotFoundError(Exception):
        pass

    def complain(_):
        raise NotFoundError("404 Client Error.\n\nlong advice")

    kagglehub(complain)
    with pytest.raises(OSError, match=r"^404 Client Error\.$"):
        kaggle.fetch(UTKFACE, target)
    assert not target.exists()


def test_another_layout_is_named(kagglehub, target, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "train.csv").touch()
    kagglehub(lambda _: str(tmp_path / "new"))
    with pytest.raises(ValueError, match=r"it holds train\.csv, but no folder UTKFace"):
        kaggle.fetch(UTKFACE, target)


def test_space_is_looked_for_before_kagglehub_is_asked(kagglehub, target, monkeypatch):
    def ask(_):
        raise AssertionError("the network was asked")

    kagglehub(ask)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**7))
    with pytest.raises(AgelibError, match=r"cache needs 0\.8 GB"):
        kaggle.fetch(UTKFACE, target)


@pytest.mark.usefixtures("without_kagglehub")
def test_without_kagglehub_the_zip_file_is_downloaded(target, tmp_path, monkeypatch):
    content = write_zip(tmp_path / "any.zip", kaggle_layout(IMAGES)).read_bytes()
    with serving(answering(content, "application/zip")) as url:
        monkeypatch.setattr(kaggle, "_API", url)
        kaggle.fetch(UTKFACE, target)
    assert list(target.parent.iterdir()) == [target]
    assert unpacked(target) == IMAGES


@pytest.mark.usefixtures("without_kagglehub")
@pytest.mark.parametrize("cut", [1, 1000], ids=["end", "more"])
def test_half_a_zip_file_is_refused(target, tmp_path, monkeypatch, cut):
    content = write_zip(tmp_path / "any.zip", kaggle_layout(IMAGES)).read_bytes()[:-cut]
    with serving(answering(content, "application/zip")) as url:
        monkeypatch.setattr(kaggle, "_API", url)
        with pytest.raises(OSError, match="is no zip file, or not all of it"):
            kaggle.fetch(UTKFACE, target)
    assert list(target.parent.iterdir()) == []
