import hashlib
import os
import threading
from pathlib import Path

import pytest
from PIL import Image

from agelib import AgelibError, files


def test_atomic_replaces_the_old_content(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    for text in ("old", "new"):
        with files.atomic(path) as partial:
            partial.write_text(text)
            assert partial.parent == path.parent  # else the rename would be a copy
        assert path.read_text() == text
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


def cut_off(path, error):
    with files.atomic(path) as partial:
        partial.write_text("half")
        raise error("cut off")


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_atomic_leaves_the_old_content_when_cut_off(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error, match="cut off"):
        cut_off(path, error)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_atomic_leaves_nothing_when_the_first_write_is_cut_off(tmp_path):
    with pytest.raises(OSError, match="cut off"):
        cut_off(tmp_path / "a.txt", OSError)
    assert list(tmp_path.iterdir()) == []


def test_atomic_shows_nothing_under_the_final_name_before_the_end(tmp_path):
    path = tmp_path / "a.txt"
    with files.atomic(path) as partial:
        partial.write_text("half")
        assert not path.exists()
    assert path.exists()


def test_atomic_syncs_the_data_before_it_renames(tmp_path, monkeypatch):
    calls = []
    fsync, replace = files.os.fsync, files.os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(files.os, "replace", lambda *a: (calls.append("replace"), replace(*a)))
    with files.atomic(tmp_path / "a.txt") as partial:
        partial.write_text("new")
    assert calls == ["fsync", "replace"]


def test_atomic_replaces_what_a_link_leads_to_and_not_the_link(tmp_path):
    target, link = tmp_path / "there" / "a.txt", tmp_path / "link.txt"
    link.symlink_to(target)
    for text in ("new", "newer"):
        with files.atomic(link) as partial:
            partial.write_text(text)
        assert link.is_symlink()
        assert target.read_text() == text
    (target.parent / ".a.txt.123.part").touch()
    files.remove_partials(link)
    assert [file.name for file in target.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_atomic_keeps_the_mode_of_the_file_it_replaces(tmp_path, mode):
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(mode)
    with files.atomic(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == mode


def test_atomic_gives_a_new_file_the_usual_mode(tmp_path):
    (tmp_path / "usual.txt").touch()
    with files.atomic(tmp_path / "a.txt") as partial:
        partial.write_text("new")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "usual.txt").stat().st_mode


def test_atomic_writes_through_what_cannot_be_replaced(tmp_path):
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    with files.atomic(pipe) as path:
        path.write_text("new")
    reader.join()
    assert received == ["new"]
    assert pipe.is_fifo()
    with files.atomic(Path(os.devnull)) as path:
        path.write_text("new")
    assert Path(os.devnull).is_char_device()


FOUND = ["B.JPG", "a.jpg", "deep/c.webp", "deep/er/d.txt"]
HIDDEN = [
    "._a.jpg",
    ".thumbnails/1.jpg",
    ".Trash-1000/files/b.jpg",
    "deep/__MACOSX/c.jpg",
    "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg",
    "$RECYCLE.BIN/x.jpg",
]


@pytest.fixture
def album(tmp_path):
    for name in FOUND + HIDDEN:
        path = tmp_path / ".home" / "album" / name  # what is above is nobody's business
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / ".home" / "album" / "folder.jpg").mkdir()
    return tmp_path / ".home" / "album"


def test_files_are_found_at_any_depth_and_without_hidden_ones(album):
    found = files.find_files(album)
    assert [path.relative_to(album).as_posix() for path in found] == FOUND


def test_files_are_found_by_endings_in_small_letters_or_capitals(album):
    found = files.find_files(album, files.IMAGE_SUFFIXES)
    assert [path.relative_to(album).as_posix() for path in found] == FOUND[:3]


def test_a_folder_that_cannot_be_read_is_no_empty_one(album, monkeypatch):
    scandir = os.scandir

    def failing(place):
        if str(place).endswith("er"):
            raise OSError(5, "Input/output error")
        return scandir(place)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(OSError, match="Input/output"):
        files.find_files(album)
    with pytest.raises(FileNotFoundError):
        files.find_files(album / "nowhere")


def test_every_ending_of_an_image_that_pillow_opens_is_known(tmp_path):
    common = ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .avif .heic .heif .pgm .jp2"
    assert set(common.split()) <= set(files.IMAGE_SUFFIXES)
    assert not {".eps", ".pdf", ".ps", ".h5", ".mpg", ".ico"} & set(files.IMAGE_SUFFIXES)
    assert len(set(files.IMAGE_SUFFIXES)) == len(files.IMAGE_SUFFIXES)
    assert set(files.IMAGE_FORMATS) <= set(Image.OPEN)
    assert not set(files.IMAGE_SUFFIXES) & set(files.VIDEO_SUFFIXES)


@pytest.mark.parametrize("content", [b"", b"abc", bytes(range(256)) * 5000])
def test_sha256_is_the_usual_one(tmp_path, content):
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    assert files.sha256(path) == hashlib.sha256(content).hexdigest()


def test_json_comes_back_as_it_was(tmp_path):
    content = {"b": [1, 2.5, None], "a": {"ä": "ü\n"}}
    files.write_json(tmp_path / "a.json", content)
    assert files.read_json(tmp_path / "a.json") == content


def test_equal_json_gives_equal_bytes(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": 1, "b": 2})
    files.write_json(tmp_path / "b.json", {"b": 2, "a": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": tmp_path})
    assert files.read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00garbage", b"<html>"])
def test_damaged_json_is_reported_with_its_path(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(AgelibError, match=r"manifest\.json is damaged .*delete it"):
        files.read_json(path)


def test_partials_of_a_killed_process_are_removed_and_nothing_else(tmp_path):
    stale = [".a[1].npy.123.part", ".a[1].npy.4.part"]
    others = [
        "a[1].npy",
        ".a[1].npy",
        ".a1.npy.123.part",
        ".b.npy.123.part",
        ".a[1].npy.json.1.part",
    ]
    for name in stale + others:
        (tmp_path / name).touch()
    files.remove_partials(tmp_path / "a[1].npy")
    assert {path.name for path in tmp_path.iterdir()} == set(others)
