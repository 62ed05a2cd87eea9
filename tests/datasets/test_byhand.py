import hashlib
import os
import shutil
import tarfile

import pytest
from conftest import kaggle_layout, write_zip

from agelib.datasets import byhand
from agelib.datasets.archives import unpack
from agelib.datasets.tables import DATASETS

UTKFACE, WIKI = DATASETS["utkface"].archive, DATASETS["wiki"].archive
IMAGES = {"1_0_0_1.jpg": b"one" * 500, "2_0_0_2.jpg": b"two" * 500}


@pytest.fixture
def folders(tmp_path):
    """The two places where an archive may lie."""
    return [tmp_path / "raw", tmp_path / "drive" / "archives"]


@pytest.fixture
def target(folders):
    folders[0].mkdir()
    return folders[0] / UTKFACE.file


def write_any(path, images, top="UTKFace"):
    """Writes an archive of the kind that its name says."""
    folder = path.parent / "make" / top
    folder.mkdir(parents=True)
    for name, content in images.items():
        (folder / name).write_bytes(content)
    if path.suffix.lower() == ".zip":
        write_zip(path, {f"{top}/{name}": content for name, content in images.items()})
    else:
        with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as tar:
            tar.add(folder, top)
    shutil.rmtree(path.parent / "make")
    return path


def unpacked(target):
    folder = target.parent / target.name.split(".")[0]
    unpack(target, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


NAMES = """UTKFace.tar (1).gz|utkface.tgz|UTKFace.tar|UTKFace.zip|utkface-new.zip|archive.zip|
archive (2).zip|Archive(1).zip""".replace("\n", "").split("|")


@pytest.mark.parametrize(
    ("place", "name"), [(1, UTKFACE.file), *((place, name) for place in (0, 1) for name in NAMES)]
)
def test_an_archive_is_found_under_the_names_that_people_have(folders, target, place, name, capsys):
    folders[place].mkdir(parents=True, exist_ok=True)
    path = write_any(folders[place] / name, IMAGES)
    content = path.read_bytes()
    assert byhand.take(UTKFACE, folders, target, None)
    assert f"UTKFace.tar.gz comes from {path}." in capsys.readouterr().err.splitlines()
    assert unpacked(target) == IMAGES
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["photos.zip", "utkface.rar", "wiki_crop.tar", "UTKFace", ".zip"])
def test_other_names_are_left_alone(folders, target, name, capsys):
    (folders[0] / name).write_bytes(b"other")
    assert not byhand.take(UTKFACE, folders, target, None)
    assert capsys.readouterr().err == ""


def test_a_folder_is_no_archive_and_no_folder_no_trouble(folders, target):
    (folders[0] / "archive.zip").mkdir()
    assert not byhand.take(UTKFACE, folders, target, None)


def test_what_is_to_be_replaced_is_no_source(folders, target):
    write_any(target, IMAGES)
    assert not byhand.take(UTKFACE, folders, target, None)


def test_an_official_archive_is_copied_byte_by_byte(folders, target):
    folders[1].mkdir(parents=True)
    path = write_any(folders[1] / UTKFACE.file, IMAGES)
    assert byhand.take(UTKFACE, folders, target, None)
    assert target.read_bytes() == path.read_bytes()


def test_an_official_archive_must_have_the_checksum(folders, capsys):
    folders[0].mkdir()
    target = folders[0] / WIKI.file
    path = write_any(folders[0] / "wiki_crop (1).tar", IMAGES, "wiki_crop")
    assert not byhand.take(WIKI, folders, target, ("md5", "0" * 32))
    assert f"{path} is not used for wiki_crop.tar: it does not have the MD5 000" in (
        capsys.readouterr().err
    )
    assert not target.exists()
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    assert byhand.take(WIKI, folders, target, ("md5", digest))
    assert target.read_bytes() == path.read_bytes()


def test_another_packing_needs_no_checksum(folders):
    folders[0].mkdir()
    target = folders[0] / WIKI.file
    write_any(folders[0] / "wiki_crop.zip", IMAGES, "wiki_crop")
    assert byhand.take(WIKI, folders, target, ("md5", "0" * 32))
    assert unpacked(target) == IMAGES


def test_the_next_one_is_tried_after_one_that_will_not_do(folders, target, capsys):
    write_zip(folders[0] / "archive.zip", {f"{i}/a": b"" for i in "edcba"})
    (folders[0] / "UTKFace.zip").write_bytes(b"half a zip")
    good = write_zip(folders[1] / "utkface-new.zip", kaggle_layout(IMAGES))
    assert byhand.take(UTKFACE, folders, target, None)
    assert unpacked(target) == IMAGES
    said = capsys.readouterr().err.splitlines()
    for line in (
        f"{folders[0] / 'UTKFace.zip'} is not used for UTKFace.tar.gz: it is damaged: file could "
        "not be opened successfully.",
        f"{folders[0] / 'archive.zip'} is not used for UTKFace.tar.gz: it holds a, b, c and 2 "
        "more, but no folder UTKFace.",
        f"UTKFace.tar.gz comes from {good}.",
    ):
        assert line in said


@pytest.mark.parametrize("top", ["cats", "UTKFace"])
@pytest.mark.parametrize("name", ["UTKFace.tar.gz", "utkface.tgz", "UTKFace.tar", "archive.zip"])
def test_what_is_damaged_or_another_thing_leaves_nothing_behind(folders, target, name, top, capsys):
    folders[1].mkdir(parents=True)
    images = {"a.jpg": os.urandom(5000), "b.jpg": os.urandom(5000)}
    path = write_any(folders[1] / name, images, top)
    if top == "UTKFace":
        content = bytearray(path.read_bytes())
        path.write_bytes(content[:2000] + bytes(100) + content[2100:7000])
    assert not byhand.take(UTKFACE, folders, target, None)
    assert f"{path} is not used for UTKFace.tar.gz: it " in capsys.readouterr().err
    assert list(folders[0].iterdir()) == []


def test_the_full_disk_is_not_the_archives_fault(folders, target, monkeypatch):
    write_zip(folders[0] / "archive.zip", kaggle_layout(IMAGES))

    def fill(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(byhand.unpack, "write_tar", fill)
    with pytest.raises(OSError, match="No space left"):
        byhand.take(UTKFACE, folders, target, None)
