import hashlib
import io
import tarfile
import zipfile
from types import SimpleNamespace

import pytest
from conftest import kaggle_layout, write_zip

from agelib import AgelibError, disk_errors
from agelib.datasets.archives import Archive
from agelib.datasets.readers import read_utkface
from agelib.datasets.registry import DATASETS
from agelib.datasets.unpack import unpack, verify
from agelib.files import sha256

UTKFACE = DATASETS["utkface"].archive
LABELLED = Archive("faces.zip", "faces")
IMAGES = {"1_0_0_1.jpg": b"one" * 500, "2_0_0_2.jpg": b"two" * 500}


@pytest.fixture
def target(tmp_path):
    return tmp_path / "raw" / UTKFACE.folder


def write_tar(path, contents):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def contents(folder):
    paths = (path for path in folder.rglob("[!.]*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def refused(source, target, sentence):
    """Makes sure that neither looking nor unpacking takes an archive, or leaves anything."""
    for attempt in (
        lambda: verify(source, UTKFACE, None),
        lambda: unpack(source, UTKFACE, target, {}),
    ):
        with pytest.raises(ValueError, match=sentence):
            attempt()
    assert not target.exists()
    assert not target.with_name(f".{target.name}").exists()


@pytest.mark.parametrize(
    ("write", "name"), [(write_zip, "archive.zip"), (write_tar, "a.tar"), (write_tar, "a.tar.gz")]
)
def test_kaggles_layout_gives_the_images_once(tmp_path, target, sample_config, write, name):
    images = {
        path.name: path.read_bytes() for path in (sample_config.raw / "UTKFace").glob("[!.]*")
    }
    source = write(tmp_path / name, kaggle_layout(images))
    verify(source, UTKFACE, None)
    unpack(source, UTKFACE, target, {})
    assert contents(target) == images
    assert read_utkface(target)["reject"].eq("").any()


@pytest.mark.real
def test_the_real_images_come_through_kaggles_layout(mirror, tmp_path, target):
    digests = {}
    with (
        tarfile.open(mirror / UTKFACE.file) as tar,
        zipfile.ZipFile(tmp_path / "archive.zip", "w") as file,
    ):
        for entry in tar:
            if entry.isreg():
                content = tar.extractfile(entry).read()
                digests[entry.name] = hashlib.sha256(content).hexdigest()
                file.writestr(f"utkface_aligned_cropped/{entry.name}", b"copy")
                file.writestr(entry.name.replace("UTKFace", "crop_part1"), b"copy")
                file.writestr(entry.name, content)
    unpack(tmp_path / "archive.zip", UTKFACE, target, {})
    assert len(digests) > 10_000
    assert digests == {f"UTKFace/{path.name}": sha256(path) for path in target.glob("[!.]*")}


@pytest.mark.parametrize(
    "inside",
    [
        {"data/utkface/a.jpg": b"a", "__MACOSX/data/utkface/._a.jpg": b"x", "UTKFace": b"file"},
        {"UTKFace/a.jpg": b"a", "UTKFace/.DS_Store": b"x", "UTKFaces/b.jpg": b"b"},
        {"UTKFace\\a.jpg": b"a", "UTKFace\\": b""},
        {"./UTKFace/a.jpg": b"a", "b.jpg": b"b"},
    ],
    ids=["deep", "hidden", "backslash", "dot"],
)
def test_only_visible_files_of_the_folder_are_taken(tmp_path, target, inside):
    unpack(write_zip(tmp_path / "a.zip", inside), UTKFACE, target, {})
    assert contents(target) == {"a.jpg": b"a"}


def test_subfolders_are_kept(tmp_path):
    source = write_zip(
        tmp_path / "a.zip", {"x/wiki_crop/00/a.jpg": b"a", "x/wiki_crop/w.mat": b"w"}
    )
    unpack(source, DATASETS["wiki"].archive, tmp_path / "wiki", {})
    assert contents(tmp_path / "wiki") == {"00/a.jpg": b"a", "w.mat": b"w"}


@pytest.mark.parametrize(
    ("inside", "holds"),
    [
        ({}, "nothing"),
        ({"UTKFace": b"a file"}, "UTKFace"),
        ({"b/a": b"", "C/a": b"", "a/a": b"", "d": b"", "e": b""}, "a, b, C and 2 more"),
    ],
)
def test_another_archive_is_refused(tmp_path, target, inside, holds):
    source = write_zip(tmp_path / "a.zip", inside)
    refused(source, target, f"^it holds {holds}, but no folder UTKFace$")
    with pytest.raises(ValueError, match=rf"^it holds {holds}, but no labels\.csv$"):
        verify(source, LABELLED, None)


def test_damage_after_the_last_image_is_noticed(tmp_path, target):
    source = write_tar(tmp_path / "a.tar.gz", {"UTKFace/a.jpg": b"a" * 5000})
    content = bytearray(source.read_bytes())
    content[-8] ^= 1  # in gzip's checksum
    source.write_bytes(content)
    refused(source, target, r"^it is damaged: CRC check failed")


def test_a_damaged_zip_file_is_refused(tmp_path, target):
    source = write_zip(tmp_path / "a.zip", kaggle_layout(IMAGES))
    source.write_bytes(source.read_bytes().replace(b"twotwo", b"twotw0"))
    refused(source, target, r"^it is damaged: Bad CRC-32")


def test_a_zip_file_whose_compressed_bytes_are_damaged_is_refused(tmp_path, target):
    source, name = tmp_path / "a.zip", "UTKFace/30_0_1_20170116003727788.jpg"
    content = b"".join(bytes([i * i % 251]) for i in range(4096))
    with zipfile.ZipFile(source, "w", zipfile.ZIP_LZMA) as file:
        file.writestr(name, content)
    damaged = bytearray(source.read_bytes())
    start = damaged.index(name.encode()) + len(name) + 50  # beyond the settings of LZMA
    damaged[start : start + 200] = bytes(200)
    source.write_bytes(damaged)
    refused(source, target, r"^it is damaged: Corrupt input data")


def test_a_zip_file_with_a_password_is_refused(tmp_path, target):
    source = write_zip(tmp_path / "a.zip", {"UTKFace/a.jpg": b"a"})
    content = bytearray(source.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1
    source.write_bytes(content)
    refused(source, target, r"^it cannot be read: .* password required")


def test_a_file_must_have_its_checksum(tmp_path):
    source = tmp_path / "a.zip"
    source.write_bytes(b"content")
    verify(source, UTKFACE, ("md5", hashlib.md5(b"content").hexdigest()))
    with pytest.raises(ValueError, match=r"^it does not have the SHA256 00$"):
        verify(source, UTKFACE, ("sha256", "00"))


def test_no_space_is_noticed_before_anything_is_written(tmp_path, target, monkeypatch):
    source = write_zip(tmp_path / "a.zip", kaggle_layout(IMAGES))
    monkeypatch.setattr(disk_errors.shutil, "disk_usage", lambda _: SimpleNamespace(free=2999))
    with pytest.raises(AgelibError, match="are free: make room"):
        unpack(source, UTKFACE, target, {})
    assert list(target.parent.iterdir()) == []
