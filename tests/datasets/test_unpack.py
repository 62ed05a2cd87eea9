import hashlib
import io
import tarfile
import zipfile
from types import SimpleNamespace

import pytest
from conftest import kaggle_layout, write_zip

from agelib import AgelibError, disk
from agelib.datasets import unpack as repack
from agelib.datasets.archives import verify
from agelib.datasets.tables import DATASETS, read_utkface
from agelib.datasets.unpack import unpack

UTKFACE = DATASETS["utkface"].archive
IMAGES = {"1_0_0_1.jpg": b"one" * 500, "2_0_0_2.jpg": b"two" * 500}


@pytest.fixture
def target(tmp_path):
    return tmp_path / "raw" / UTKFACE.file


@pytest.fixture
def sample_images(sample_config):
    return {path.name: path.read_bytes() for path in (sample_config.raw / "UTKFace").iterdir()}


def write_tree(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_plain_tar(path, contents):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def packed(target):
    with tarfile.open(target) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_zip, "archive.zip"),
        (write_tree, "folder"),
        (write_plain_tar, "a.tar"),
        (write_plain_tar, "a.tar.gz"),
    ],
)
def test_kaggles_layout_becomes_the_authors(tmp_path, target, sample_images, write, name):
    source = write(tmp_path / name, kaggle_layout(sample_images))
    repack.pack(source, UTKFACE, target)
    assert packed(target) == {f"UTKFace/{name}": data for name, data in sample_images.items()}
    verify(target, None)
    unpack(target, target.parent / "UTKFace")
    assert read_utkface(target.parent / "UTKFace")["reject"].eq("").any()


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
                digests[entry.name] = hashlib.sha256(content).digest()
                file.writestr(f"utkface_aligned_cropped/{entry.name}", b"copy")
                file.writestr(entry.name.replace("UTKFace", "crop_part1"), b"copy")
                file.writestr(entry.name, content)
    repack.pack(tmp_path / "archive.zip", UTKFACE, target)
    assert len(digests) > 10_000
    with tarfile.open(target) as tar:
        assert digests == {
            entry.name: hashlib.sha256(tar.extractfile(entry).read()).digest() for entry in tar
        }


def test_equal_packings_give_equal_bytes(tmp_path, target):
    first = write_tree(tmp_path / "first", kaggle_layout(IMAGES))
    second = write_tree(tmp_path / "second", dict(reversed(kaggle_layout(IMAGES).items())))
    repack.pack(first, UTKFACE, target)
    content = target.read_bytes()
    repack.pack(second, UTKFACE, target)
    assert target.read_bytes() == content


@pytest.mark.parametrize(
    "contents",
    [
        {"data/utkface/a.jpg": b"a", "__MACOSX/data/utkface/._a.jpg": b"x", "UTKFace": b"file"},
        {"UTKFace/a.jpg": b"a", "UTKFace/.DS_Store": b"x", "UTKFace/../b.jpg": b"b"},
        {"UTKFace\\a.jpg": b"a"},
    ],
    ids=["deep", "hidden", "backslash"],
)
def test_only_visible_files_of_the_folder_are_taken(tmp_path, target, contents):
    repack.pack(write_zip(tmp_path / "a.zip", contents), UTKFACE, target)
    assert packed(target) == {"UTKFace/a.jpg": b"a"}


def test_subfolders_are_kept(tmp_path):
    target = tmp_path / "wiki_crop.tar"
    source = write_zip(
        tmp_path / "a.zip", {"x/wiki_crop/00/a.jpg": b"a", "x/wiki_crop/w.mat": b"w"}
    )
    repack.pack(source, DATASETS["wiki"].archive, target)
    assert packed(target) == {"wiki_crop/00/a.jpg": b"a", "wiki_crop/w.mat": b"w"}
    assert target.read_bytes()[257:262] == b"ustar"


@pytest.mark.parametrize(
    ("contents", "holds"),
    [
        ({}, "nothing"),
        ({"UTKFace": b"a file"}, "UTKFace"),
        ({"b/a": b"", "C/a": b"", "a/a": b"", "d": b"", "e": b""}, "a, b, C and 2 more"),
    ],
)
def test_another_archive_is_refused(tmp_path, target, contents, holds):
    source = write_zip(tmp_path / "a.zip", contents)
    for look in (lambda: repack.pack(source, UTKFACE, target), lambda: has_layout(source)):
        with pytest.raises(ValueError, match=f"^it holds {holds}, but no folder UTKFace$"):
            look()
    assert not target.exists()


def has_layout(source):
    return repack.has_layout(source, UTKFACE)


def test_the_authors_layout_is_told_from_others(tmp_path):
    good = {"UTKFace/a.jpg": b"a"}
    assert has_layout(write_plain_tar(tmp_path / "a.tar", good))
    assert not has_layout(write_plain_tar(tmp_path / "b.tar", {"data/UTKFace/a.jpg": b"a"}))
    cut = write_plain_tar(tmp_path / "c.tar.gz", good)
    cut.write_bytes(cut.read_bytes()[:-9])
    with pytest.raises(OSError, match=r"^it is damaged: "):
        has_layout(cut)


def test_damage_after_the_last_image_is_noticed_before_anything_is_written(tmp_path, target):
    source = write_plain_tar(tmp_path / "a.tar.gz", {"UTKFace/a.jpg": b"a" * 5000})
    content = bytearray(source.read_bytes())
    content[-8] ^= 1  # in gzip's checksum
    source.write_bytes(content)
    with pytest.raises(OSError, match=r"^it is damaged: CRC check failed"):
        repack.pack(source, UTKFACE, target)
    assert list(target.parent.iterdir()) == []


def test_a_damaged_zip_file_is_refused(tmp_path, target):
    source = write_zip(tmp_path / "a.zip", kaggle_layout(IMAGES))
    content = source.read_bytes()
    source.write_bytes(content.replace(b"twotwo", b"twotw0"))
    with pytest.raises(OSError, match=r"^it cannot be read: Bad CRC-32"):
        repack.pack(source, UTKFACE, target)
    assert list(target.parent.iterdir()) == []


def test_a_zip_file_with_a_password_is_refused(tmp_path, target):
    source = write_zip(tmp_path / "a.zip", {"UTKFace/a.jpg": b"a"})
    content = bytearray(source.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1
    source.write_bytes(content)
    with pytest.raises(OSError, match=r"^it cannot be read: .* password required"):
        repack.pack(source, UTKFACE, target)


def test_no_space_is_noticed_before_packing(tmp_path, target, monkeypatch):
    source = write_zip(tmp_path / "a.zip", kaggle_layout(IMAGES))
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=2999))
    with pytest.raises(AgelibError, match="are free: make room"):
        repack.pack(source, UTKFACE, target)
    assert list(target.parent.iterdir()) == []
