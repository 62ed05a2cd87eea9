import dataclasses
import errno
import functools
import gzip
import hashlib
import http.server
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from conftest import answering, kaggle_layout, serving, write_zip

from agelib import AgelibError, disk_errors, files
from agelib.config import Config
from agelib.datasets import download, transfer
from agelib.datasets.download import find_sha256
from agelib.datasets.registry import DATASETS
from agelib.files import sha256

GOOD = {"UTKFace/1_0_0_1.jpg": b"one" * 400, "UTKFace/2_0_0_2.jpg": b"two" * 400}
WIKI = {"wiki_crop/wiki.mat": b"mat" * 400, "wiki_crop/00/1_1981-05-05_2009.jpg": b"jpg" * 400}
QUOTA = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head></html>"
# Of what arrives only whole blocks are kept.
BLOCK = transfer._BLOCK
TRIES = 5
NOTHING = [0] * TRIES
ARCHIVE, SUMS = ("GET", "/wiki_crop.tar"), ("GET", "/SHA256SUMS")
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from agelib.datasets import unpack
from agelib.datasets.registry import DATASETS

moments = iter(range(int(sys.argv[3])))

def before(function):
    def killed_in_time(*arguments, **options):
        if next(moments, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return killed_in_time

shutil.copyfileobj = before(shutil.copyfileobj)
Path.rename = before(Path.rename)
unpack.unpack(Path(sys.argv[1]), DATASETS["utkface"].archive, Path(sys.argv[2]), {})
"""
UTKFACE = DATASETS["utkface"].archive
IMAGES = {"1_0_0_1.jpg": b"one" * 500, "2_0_0_2.jpg": b"two" * 500}
NAMES = (
    *("UTKFace.tar (1).gz", "utkface.tgz", "UTKFace.tar", "UTKFace.zip", "utkface-new.zip"),
    *("archive.zip", "archive (2).zip", "Archive(1).zip", "UTKFace - Copy.zip"),
    *("UTKFace - Kopie (2).zip", "UTKFace copy 2.zip", "Copy of UTKFace.tar.gz"),
    *("UTKFace-20240101T000000Z-001.zip", "UTKFace-20240101T000000Z-1-001.zip"),
)


def write_tar(path, contents, *special):
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for entry in special:
            tar.addfile(entry, io.BytesIO(b"evil"[: entry.size]))
    content = buffer.getvalue()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_sums(folder, **changes):
    sums = {path.name: sha256(path) for path in folder.glob("*.tar*")} | changes
    (folder / "SHA256SUMS").write_text("".join(f"{sums[name]}  {name}\n" for name in sums))


def special(name, kind=tarfile.REGTYPE, link=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    entry.size = 4 if kind == tarfile.REGTYPE else 0
    return entry


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def contents(folder):
    paths = (path for path in folder.rglob("[!.]*") if path.is_file())
    return {path.relative_to(folder.parent).as_posix(): path.read_bytes() for path in paths}


def assert_readable(caught):
    """Makes sure that an error says what to do, in one sentence or the lines of one."""
    text = str(caught.value)
    first, *ways = text.split("\n")
    assert text.endswith(".")
    assert first.endswith(": try again later, or" if ways else ".")
    assert ways[-1:] in ([], ["then run the download step again."])
    assert all(way.startswith(("- ", "  ")) for way in ways[:-1])
    assert "object at 0x" not in text


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The seconds that a download would have waited; nobody waits."""
    seconds = []
    monkeypatch.setattr(disk_errors.time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A mirror with two small archives."""
    folder = tmp_path / "mirror"
    write_tar(folder / "wiki_crop.tar", WIKI)
    write_tar(folder / "UTKFace.tar.gz", GOOD)
    write_sums(folder)
    monkeypatch.setenv("AGELIB_MIRROR", str(folder))
    return folder


@pytest.fixture
def config(tmp_path):
    return Config.from_profile("wiki", data=tmp_path / "data")


@pytest.fixture
def url(home, monkeypatch):
    """The same mirror as a web server on this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with serving(functools.partial(Handler, directory=home)) as address:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("AGELIB_MIRROR", address)
        yield address


@pytest.fixture(params=["folder", "url"])
def mirrors(request, home):
    """Both kinds of mirror, one after the other."""
    if request.param == "url":
        request.getfixturevalue("url")
    return home


@pytest.fixture
def no_mirror(monkeypatch):
    monkeypatch.delenv("AGELIB_MIRROR", raising=False)


@pytest.fixture
def offline(no_mirror, monkeypatch):
    def refuse(*_, **__):
        raise requests.ConnectionError("name not resolved")

    monkeypatch.setattr(requests, "get", refuse)


@pytest.mark.parametrize("name", ["wiki", "utkface"])
def test_an_archive_arrives_whole_from_a_mirror(name, mirrors, config):
    path = download.fetch(name, config)
    assert path == config.raw / DATASETS[name].archive.file
    assert path.read_bytes() == (mirrors / path.name).read_bytes()
    assert listing(config.raw) == [f".{path.name}.json", path.name]


def test_a_url_may_end_with_a_slash(url, config, monkeypatch):
    monkeypatch.setenv("AGELIB_MIRROR", f"{url}/")
    assert download.fetch("wiki", config).exists()


def test_an_archive_from_a_mirror_without_sums_is_read_to_its_end(mirrors, config):
    (mirrors / "SHA256SUMS").unlink()
    source = mirrors / "UTKFace.tar.gz"
    whole = source.read_bytes()
    source.write_bytes(whole[:-9])
    with pytest.raises(AgelibError, match=r"could not be fetched from .*it is damaged: ") as caught:
        download.fetch("utkface", config)
    assert_readable(caught)
    assert listing(config.raw) == []
    source.write_bytes(whole)
    assert download.fetch("utkface", config).read_bytes() == whole


def test_sums_may_mark_binary_files_with_a_star(mirrors, config):
    digest = sha256(mirrors / "wiki_crop.tar")
    (mirrors / "SHA256SUMS").write_text(f"\n{digest} *wiki_crop.tar\n")
    assert download.fetch("wiki", config).exists()
    (mirrors / "SHA256SUMS").write_text(f"{'0' * 64} *UTKFace.tar.gz\n")
    with pytest.raises(AgelibError):
        download.fetch("utkface", config)


def test_a_checksum_is_found_among_those_of_other_files():
    sums = "aa  other_wiki_crop.tar\n\nbb *./wiki_crop.tar\ncc  old/wiki_crop.tar\n<html>\n"
    assert find_sha256("wiki_crop.tar", sums) == ("sha256", "bb")
    assert find_sha256("imdb_crop.tar", sums) is None


@pytest.mark.parametrize("mark", ["  ./", " *./"])
def test_sums_may_name_files_as_find_does(mirrors, config, mark):
    (mirrors / "SHA256SUMS").write_text(f"{'0' * 64}{mark}wiki_crop.tar\n")
    with pytest.raises(AgelibError, match="does not have the SHA256"):
        download.fetch("wiki", config)
    digest = sha256(mirrors / "wiki_crop.tar")
    (mirrors / "SHA256SUMS").write_text(f"{digest}{mark}wiki_crop.tar\n")
    assert download.fetch("wiki", config).exists()


def test_an_archive_with_another_sum_leaves_nothing_behind(mirrors, config):
    write_sums(mirrors, **{"wiki_crop.tar": "0" * 64})
    with pytest.raises(
        AgelibError, match=r"(?s)wiki_crop\.tar could not be fetched.*AGELIB_MIRROR"
    ):
        download.fetch("wiki", config)
    assert listing(config.raw) == []


def official(monkeypatch, name, url, path):
    """Lets an archive's official home be a small one on this machine."""
    digest = files.hash_file(path, "md5")
    archive = dataclasses.replace(DATASETS[name].archive, url=f"{url}/{path.name}", md5=digest)
    monkeypatch.setitem(DATASETS, name, dataclasses.replace(DATASETS[name], archive=archive))


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_what_the_mirror_lacks_comes_from_its_home(kind, home, url, config, monkeypatch, capsys):
    official(monkeypatch, "wiki", url, home / "wiki_crop.tar")
    (home.parent / "empty").mkdir()
    place = str(home.parent / "empty") if kind == "folder" else f"{url}/nothing"
    monkeypatch.setenv("AGELIB_MIRROR", place)
    path = download.fetch("wiki", config)
    assert path.read_bytes() == (home / "wiki_crop.tar").read_bytes()
    assert f"wiki_crop.tar is not in {place} and comes from {url}" in capsys.readouterr().err


def test_what_neither_the_mirror_nor_its_home_has_names_both(mirrors, config, monkeypatch):
    archive = dataclasses.replace(DATASETS["imdb"].archive, url="http://127.0.0.1:9/imdb_crop.tar")
    monkeypatch.setitem(DATASETS, "imdb", dataclasses.replace(DATASETS["imdb"], archive=archive))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(AgelibError) as caught:
        download.fetch("imdb", config)
    for part in (f"imdb_crop.tar is not in {config.mirror} and", archive.url, "AGELIB_MIRROR"):
        assert part in str(caught.value)
    assert_readable(caught)
    assert listing(config.raw) == []


@pytest.mark.usefixtures("offline")
def test_the_sample_has_no_other_home_than_its_mirror(tmp_path):
    config = Config.from_profile("sample", data=tmp_path)
    Path(config.mirror).mkdir(parents=True)
    with pytest.raises(AgelibError, match=r"wiki_crop\.tar could not be fetched from ") as caught:
        download.fetch("wiki", config)
    text = str(caught.value)
    assert text.endswith(f": delete {config.mirror} and run the download step again.")
    assert DATASETS["wiki"].home not in text
    assert "AGELIB_MIRROR" not in text


def test_a_mirror_that_is_not_there_is_named(config, tmp_path, monkeypatch):
    monkeypatch.setenv("AGELIB_MIRROR", str(tmp_path / "nowhere"))
    with pytest.raises(AgelibError, match=r"nowhere.*does not exist"):
        download.fetch("wiki", config)


def test_a_web_mirror_that_does_not_answer_is_named(config, monkeypatch, pauses):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AGELIB_MIRROR", "http://127.0.0.1:9")
    sentence = r"from http://127\.0\.0\.1:9 \(no connection to 127\.0\.0\.1\): try again later"
    with pytest.raises(AgelibError, match=sentence) as caught:
        download.fetch("wiki", config)
    assert_readable(caught)
    assert pauses == [1, 2, 4, 8]


def test_a_second_fetch_asks_nobody(mirrors, config, monkeypatch):
    path = download.fetch("wiki", config)
    written = path.stat().st_mtime_ns
    monkeypatch.setenv("AGELIB_MIRROR", "http://127.0.0.1:9")
    assert download.fetch("wiki", config) == path
    assert path.stat().st_mtime_ns == written


@pytest.mark.parametrize("sums", [True, False], ids=["sums", "no sums"])
def test_an_archive_that_was_cut_off_since_is_fetched_again(mirrors, config, sums):
    if not sums:
        (mirrors / "SHA256SUMS").unlink()
    path = download.fetch("wiki", config)
    path.write_bytes(path.read_bytes()[:700])
    download.fetch("wiki", config)
    assert path.read_bytes() == (mirrors / path.name).read_bytes()


def test_a_copy_that_is_cut_off_leaves_nothing_behind(home, config, monkeypatch):
    def cut_off(source, target):
        target.write_bytes(source.read_bytes()[:700])
        raise OSError("the disk is full")

    monkeypatch.setattr(shutil, "copyfile", cut_off)
    with pytest.raises(AgelibError, match="the disk is full"):
        download.fetch("wiki", config)
    assert listing(config.raw) == []


def test_no_space_is_noticed_before_the_copy(home, config, monkeypatch):
    monkeypatch.setattr(disk_errors.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(AgelibError, match="are free: make room"):
        download.fetch("wiki", config)
    assert listing(config.raw) == []


@pytest.mark.parametrize("name", ["wiki", "imdb", "utkface"])
@pytest.mark.usefixtures("offline")
def test_without_network_the_message_names_the_way_out(name, config):
    archive = DATASETS[name].archive
    with pytest.raises(AgelibError) as caught:
        download.fetch(name, config)
    for part in (archive.file, DATASETS[name].home, "AGELIB_MIRROR", "name not resolved"):
        assert part in str(caught.value)
    assert_readable(caught)
    assert listing(config.raw) == []


@pytest.mark.usefixtures("no_mirror")
def test_official_archives_are_checked_against_their_md5(config, monkeypatch):
    asked = []

    def arrive(url, target, verify):
        asked.append(url)
        verify(write_tar(target.parents[2] / target.name, WIKI))

    monkeypatch.setattr(transfer, "download", arrive)
    with pytest.raises(AgelibError, match="does not have the MD5 f536eb7f5eae229ae8f286184364b42b"):
        download.fetch("wiki", config)
    assert listing(config.raw) == []
    archive = DATASETS["wiki"].archive
    assert asked == [archive.url]
    assert archive.url == (
        "https://data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki/static/wiki_crop.tar"
    )


@pytest.fixture
def home_says(no_mirror, monkeypatch):
    """Lets UTKFace's home be a server on this machine that knows one answer."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ExitStack() as stack:

        def says(content, *kind):
            url = stack.enter_context(serving(answering(content, *kind)))
            archive = dataclasses.replace(DATASETS["utkface"].archive, url=f"{url}/download?id=1")
            monkeypatch.setitem(
                DATASETS, "utkface", dataclasses.replace(DATASETS["utkface"], archive=archive)
            )

        yield says


@pytest.fixture
def kaggle(monkeypatch, tmp_path):
    """A Kaggle that has UTKFace, or what a test puts there; gives what it was asked for."""
    images = kaggle_layout({"1_0_0_1.jpg": b"one", "2_0_0_2.jpg": b"two"})
    path, asked = write_zip(tmp_path / "kaggle" / "utkface.zip", images), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            answering(path.read_bytes(), "application/zip").do_GET(self)

        def log_message(self, *_):
            pass

    with serving(Handler) as url:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(download, "_KAGGLE", url)
        yield SimpleNamespace(path=path, asked=asked)


@pytest.mark.usefixtures("no_mirror")
def test_utkface_is_asked_for_with_its_resource_key_and_past_the_question(config, monkeypatch):
    asked = []

    def arrive(url, target, verify):
        asked.append(url)
        return write_tar(target, GOOD)

    monkeypatch.setattr(transfer, "download", arrive)
    assert tarfile.is_tarfile(download.fetch("utkface", config))
    for part in (
        "https://drive.usercontent.google.com/download?id=0BxYys69jI14kYVM3aVhKS1VhRUk&",
        "&confirm=t",
        "&resourcekey=0-dabpv_3J0C0cditpiAfhAw",
    ):
        assert part in asked[0]


def test_utkface_from_its_home_is_read_to_its_end(home_says, config, tmp_path):
    whole = write_tar(tmp_path / "UTKFace.tar.gz", GOOD).read_bytes()
    home_says(whole[:-9])
    with pytest.raises(AgelibError, match=r"could not be fetched from .*it is damaged: ") as caught:
        download.fetch("utkface", config)
    assert_readable(caught)
    assert listing(config.raw) == []
    home_says(whole)
    assert download.fetch("utkface", config).read_bytes() == whole


def test_what_its_home_does_not_give_comes_from_kaggle(home_says, kaggle, config, capsys):
    home_says(QUOTA, "text/html; charset=utf-8")
    path = download.fetch("utkface", config)
    assert kaggle.asked == ["/jangedoo/utkface-new"]
    assert path.read_bytes() == kaggle.path.read_bytes()
    assert listing(config.raw) == [".utkface-new.zip.json", "utkface-new.zip"]
    assert contents(download.extract("utkface", config)) == {
        "UTKFace/1_0_0_1.jpg": b"one",
        "UTKFace/2_0_0_2.jpg": b"two",
    }
    assert download.fetch("utkface", config) == path
    assert len(kaggle.asked) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if "Kaggle" in line]
    assert len(said) == 1
    assert "https://www.kaggle.com/datasets/jangedoo/utkface-new" in said[0]
    assert 'a web page "Google Drive - Quota exceeded" in place of the archive' in said[0]


@pytest.mark.parametrize("cut", [1, 1000], ids=["end", "more"])
def test_half_a_zip_file_from_kaggle_is_refused(home_says, kaggle, config, cut):
    home_says(QUOTA, "text/html")
    kaggle.path.write_bytes(kaggle.path.read_bytes()[:-cut])
    with pytest.raises(AgelibError, match="from Kaggle: it is damaged: ") as caught:
        download.fetch("utkface", config)
    assert_readable(caught)
    assert listing(config.raw) == []


def test_another_layout_from_kaggle_is_named(home_says, kaggle, config):
    home_says(QUOTA, "text/html")
    write_zip(kaggle.path, {"train.csv": b""})
    with pytest.raises(AgelibError, match=r"it holds train\.csv, but no folder UTKFace"):
        download.fetch("utkface", config)
    assert listing(config.raw) == []


def test_kaggle_is_not_asked_for_what_a_mirror_gives_wrongly(home, config, kaggle):
    write_sums(home, **{"UTKFace.tar.gz": "0" * 64})
    with pytest.raises(AgelibError, match="does not have the SHA256"):
        download.fetch("utkface", config)
    assert kaggle.asked == []


@pytest.mark.usefixtures("offline")
def test_kaggle_is_not_asked_for_what_it_does_not_have(config, kaggle):
    with pytest.raises(AgelibError, match="name not resolved") as caught:
        download.fetch("wiki", config)
    assert "Kaggle" not in str(caught.value)
    assert kaggle.asked == []


def test_the_message_names_what_each_place_said_and_every_way_round(home_says, config, monkeypatch):
    home_says(QUOTA, "text/html")
    monkeypatch.setattr(download, "_KAGGLE", "http://127.0.0.1:9")
    with pytest.raises(AgelibError) as caught:
        download.fetch("utkface", config)
    assert_readable(caught)
    for part in (
        "Quota exceeded",
        "from Kaggle: no connection to 127.0.0.1",
        "try again later",
        DATASETS["utkface"].home,
        "https://www.kaggle.com/datasets/jangedoo/utkface-new",
        f"  {config.drive / 'archives'} (make that folder if it is missing) or\n  {config.raw};",
        "UTKFace.tar.gz, UTKFace.zip, utkface-new.zip, archive.zip",
        "AGELIB_MIRROR",
    ):
        assert part in str(caught.value)
    assert listing(config.raw) == []


def test_a_disk_that_fills_up_is_no_reason_to_ask_kaggle(home_says, kaggle, config, monkeypatch):
    home_says(b"x" * 999)
    monkeypatch.setattr(transfer.tqdm, "wrapattr", full_disk)
    with pytest.raises(AgelibError, match=r"UTKFace\.tar\.gz could not be stored .*: make room"):
        download.fetch("utkface", config)
    assert kaggle.asked == []


def test_a_disk_that_fills_up_with_what_kaggle_gives_is_named(
    home_says, kaggle, config, monkeypatch
):
    home_says(QUOTA, "text/html")
    monkeypatch.setattr(transfer.tqdm, "wrapattr", full_disk)
    with pytest.raises(AgelibError, match=r"UTKFace\.tar\.gz could not be stored .*: make room"):
        download.fetch("utkface", config)
    assert len(kaggle.asked) == 1


def test_no_space_is_noticed_before_utkface_is_written(home_says, kaggle, config, monkeypatch):
    home_says(bytes(2000))
    monkeypatch.setattr(disk_errors.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(AgelibError, match="are free: make room"):
        download.fetch("utkface", config)
    assert kaggle.asked == []


def test_the_licence_is_shown_when_something_is_fetched(home, config, capsys):
    download.fetch("wiki", config)
    shown = f"wiki_crop.tar: academic research only ({DATASETS['wiki'].home})"
    assert shown in capsys.readouterr().err
    download.fetch("wiki", config)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("offline")
def test_what_the_user_uploaded_is_used_before_anybody_is_asked(config, capsys):
    images = kaggle_layout({"1_0_0_1.jpg": b"one"})
    given = write_zip(config.drive / "archives" / "archive.zip", images)
    download.fetch("utkface", config)
    assert contents(download.extract("utkface", config)) == {"UTKFace/1_0_0_1.jpg": b"one"}
    assert f"UTKFace.tar.gz comes from {given}." in capsys.readouterr().err
    given.unlink()
    assert download.fetch("utkface", config).exists()


def test_another_archive_of_that_name_is_named_and_does_not_block(home, config, capsys):
    write_zip(config.raw / "archive.zip", {"cats/1.jpg": b"cat", "labels.csv": b"1"})
    path = download.fetch("utkface", config)
    assert path.read_bytes() == (home / path.name).read_bytes()
    sentence = (
        f"{config.raw / 'archive.zip'} is not used for UTKFace.tar.gz: it holds cats, labels.csv, "
        "but no folder UTKFace."
    )
    assert sentence in capsys.readouterr().err.splitlines()


@pytest.mark.usefixtures("offline")
def test_the_sample_is_never_taken_from_what_the_user_uploaded(tmp_path):
    config = Config.from_profile("sample", data=tmp_path)
    write_zip(config.raw / "UTKFace.zip", {"UTKFace/1_0_0_1.jpg": b"one"})
    with pytest.raises(AgelibError, match="could not be fetched"):
        download.fetch("utkface", config)


@pytest.mark.usefixtures("offline")
def test_another_packing_survives_a_disk_that_fills_up(config, monkeypatch):
    write_zip(config.raw / "wiki_crop.zip", WIKI)
    download.fetch("wiki", config)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full_disk)
        with pytest.raises(AgelibError, match="No space left"):
            download.extract("wiki", config)
    download.fetch("wiki", config)
    assert contents(download.extract("wiki", config)) == WIKI


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_disk_that_fails_is_not_blamed_on_the_archive(config, monkeypatch, kind):
    def fail(*_, **__):
        raise OSError(kind, os.strerror(kind))

    path = write_tar(config.raw / "wiki_crop.tar", WIKI)
    monkeypatch.setattr(shutil, "copyfileobj", fail)
    with pytest.raises(AgelibError, match=r"wiki_crop\.tar") as caught:
        download.extract("wiki", config)
    text = str(caught.value)
    assert "damaged" not in text
    assert "delete" not in text
    assert ("make room" in text) == (kind != errno.EACCES)
    assert listing(config.raw) == [f".{path.name}.json", path.name]


def by_hand(home, config):
    config.raw.mkdir(parents=True)
    return Path(shutil.copy(home / "wiki_crop.tar", config.raw))


@pytest.mark.parametrize("sums", [True, False], ids=["sums", "no sums"])
def test_an_archive_put_there_by_hand_is_kept(mirrors, config, monkeypatch, sums):
    path = by_hand(mirrors, config)
    if not sums:
        (mirrors / "SHA256SUMS").unlink()
    monkeypatch.setattr(transfer, "download", None)
    written = path.stat().st_mtime_ns
    assert download.fetch("wiki", config) == path
    assert path.stat().st_mtime_ns == written
    monkeypatch.setenv("AGELIB_MIRROR", "http://127.0.0.1:9")
    assert download.fetch("wiki", config) == path


def test_an_archive_put_there_by_hand_needs_no_mirror_that_answers(mirrors, config, monkeypatch):
    path = by_hand(mirrors, config)
    monkeypatch.setenv("AGELIB_MIRROR", "http://127.0.0.1:9")
    assert download.fetch("wiki", config) == path


def test_an_archive_put_there_by_hand_may_differ_from_a_mirror_without_sums(mirrors, config):
    (mirrors / "SHA256SUMS").unlink()
    path = write_tar(config.raw / "wiki_crop.tar", WIKI | {"wiki_crop/more": b"more"})
    content = path.read_bytes()
    assert download.fetch("wiki", config).read_bytes() == content


@pytest.mark.usefixtures("offline")
def test_without_a_mirror_the_official_md5_counts(config, monkeypatch):
    path = write_tar(config.raw / "wiki_crop.tar", WIKI)
    with pytest.raises(AgelibError, match=r"wiki_crop\.tar is not the right .*MD5 f536eb7f"):
        download.fetch("wiki", config)
    official(monkeypatch, "wiki", "http://127.0.0.1:9", path)
    assert download.fetch("wiki", config) == path


@pytest.mark.usefixtures("offline")
def test_where_no_checksum_is_known_the_archive_must_be_whole(config):
    path = write_tar(config.raw / "UTKFace.tar.gz", GOOD)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(AgelibError, match=r"UTKFace\.tar\.gz is not .*it is damaged: .* delete it"):
        download.fetch("utkface", config)
    assert path.read_bytes() == whole[:-9]
    path.write_bytes(whole)
    assert download.fetch("utkface", config) == path


def test_a_wrong_archive_put_there_by_hand_is_not_overwritten(mirrors, config):
    path = by_hand(mirrors, config)
    content = path.read_bytes()
    path.write_bytes(content[:700])
    for _ in range(2):
        with pytest.raises(AgelibError, match=r"wiki_crop\.tar is not .*: complete it, or delete"):
            download.fetch("wiki", config)
        assert path.read_bytes() == content[:700]
    path.write_bytes(content)
    assert download.fetch("wiki", config) == path


def test_an_archive_that_was_damaged_and_completed_by_hand_is_kept(home, config, monkeypatch):
    path = by_hand(home, config)
    content = path.read_bytes()
    path.write_bytes(content[:700])
    with pytest.raises(AgelibError, match="is damaged"):
        download.extract("wiki", config)
    path.write_bytes(content)
    monkeypatch.setattr(transfer, "download", None)
    assert download.fetch("wiki", config) == path
    assert contents(download.extract("wiki", config)) == WIKI


def test_what_a_killed_copy_left_goes_away(home, config):
    config.raw.mkdir(parents=True)
    (config.raw / ".wiki_crop.tar.123.part").touch()
    path = download.fetch("wiki", config)
    assert listing(config.raw) == [f".{path.name}.json", path.name]


class Line:
    """A bad line to a web server, which serves a single archive."""

    def __init__(self, content):
        self.content, self.drops, self.etag, self.ranges = content, [], '"1"', True
        self.sums, self.starts, self.refusals = True, [], {}

    def answer(self, handler):
        refusals = self.refusals.get((handler.command, handler.path), [])
        if refusals:
            return self.send(handler, refusals.pop(0), b"")
        if handler.path == "/SHA256SUMS" and self.sums:
            digest = hashlib.sha256(self.content).hexdigest()
            return self.send(handler, 200, f"{digest}  wiki_crop.tar\n".encode())
        if handler.path != "/wiki_crop.tar":
            return self.send(handler, 404, b"")
        if handler.command == "HEAD":
            return self.send(handler, 200, b"")
        asked = int(handler.headers["Range"].split("=")[1].rstrip("-")) if self.ranges else 0
        self.starts.append(asked)
        if asked >= len(self.content):
            return self.send(handler, 416, b"")
        rest = self.content[asked:]
        drop = self.drops.pop(0) if self.drops else None
        self.send(handler, 206 if self.ranges else 200, rest, asked, drop)
        self.after()

    def after(self):
        pass

    def send(self, handler, status, content, start=0, drop=None):
        handler.send_response(status)
        handler.send_header("Content-Length", len(content))
        if self.etag:
            handler.send_header("ETag", self.etag)
        if status == 206:
            end = len(self.content)
            handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        handler.end_headers()
        handler.wfile.write(content[:drop])


@pytest.fixture
def line(home, monkeypatch):
    path = write_tar(home / "wiki_crop.tar", WIKI | {"wiki_crop/big": bytes(16 * BLOCK)})
    line = Line(path.read_bytes())

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            line.answer(self)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with serving(Handler) as address:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("AGELIB_MIRROR", address)
        yield line


def assert_arrived(line, config):
    path = download.fetch("wiki", config)
    assert path.read_bytes() == line.content
    assert listing(config.raw) == [f".{path.name}.json", path.name]


def assert_cut_off(config):
    with pytest.raises(AgelibError, match=r"wiki_crop\.tar could not be fetched from http"):
        download.fetch("wiki", config)
    assert listing(config.raw) == [".wiki_crop.tar.part.json", "wiki_crop.tar.part"]


def test_a_download_goes_on_as_long_as_it_gets_further(line, config, pauses):
    line.drops = [BLOCK + 7] * 12
    assert_arrived(line, config)
    assert line.starts == [BLOCK * i for i in range(13)]
    assert pauses == []


def test_pauses_grow_while_a_download_gets_no_further(line, config, pauses):
    line.drops = [0, 0, BLOCK, 0, 0, 0, BLOCK]
    assert_arrived(line, config)
    assert pauses == [1, 2, 1, 2, 4]


def test_the_message_says_how_far_a_download_got(line, config):
    line.drops = [BLOCK * 2, *NOTHING]
    with pytest.raises(AgelibError, match=r"\(it stopped after 131,072 bytes\)") as caught:
        download.fetch("wiki", config)
    assert_readable(caught)


@pytest.mark.parametrize("place", [ARCHIVE, SUMS])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(line, config, pauses, place, status):
    line.refusals[place] = [status] * (TRIES - 1)
    assert_arrived(line, config)
    assert pauses == [1, 2, 4, 8]


def test_a_busy_server_loses_nothing_that_arrived_before(line, config, pauses):
    line.drops = [BLOCK]
    line.after = lambda: line.refusals.setdefault(ARCHIVE, [503])
    assert_arrived(line, config)
    assert line.starts == [0, BLOCK]
    assert pauses == [1]


@pytest.mark.parametrize("place", [ARCHIVE, SUMS])
def test_a_server_that_stays_busy_is_given_up(line, config, pauses, place):
    line.refusals[place] = [503] * (TRIES + 1)
    with pytest.raises(AgelibError, match=r"\(HTTP 503\): try again later") as caught:
        download.fetch("wiki", config)
    assert_readable(caught)
    assert line.refusals[place] == [503]
    assert len(pauses) == TRIES - 1


@pytest.mark.parametrize(
    ("place", "status"), [(ARCHIVE, 403), (ARCHIVE, 404), (SUMS, 403), (SUMS, 410)]
)
def test_a_server_that_refuses_is_not_asked_again(line, config, pauses, place, status):
    line.refusals[place] = [status]
    with pytest.raises(AgelibError, match=rf"\(HTTP {status}\)"):
        download.fetch("wiki", config)
    assert pauses == []


def test_an_address_that_makes_no_sense_is_not_asked_again(config, monkeypatch, pauses):
    monkeypatch.setenv("AGELIB_MIRROR", "gopher://127.0.0.1")
    with pytest.raises(AgelibError, match="No connection adapters were found for 'gopher"):
        download.fetch("wiki", config)
    assert pauses == []


def test_a_download_arrives_when_progress_is_not_shown(line, config, monkeypatch):
    monkeypatch.setattr(
        transfer.tqdm, "wrapattr", functools.partial(transfer.tqdm.wrapattr, disable=True)
    )
    line.drops = [BLOCK] * 3
    assert_arrived(line, config)


def test_a_server_that_knows_no_ranges_starts_again(line, config):
    line.ranges, line.drops = False, [BLOCK * 2, BLOCK * 9, 7, BLOCK]
    assert_arrived(line, config)


def test_a_server_that_gets_no_further_than_before_is_given_up(line, config):
    line.ranges, line.drops = False, [BLOCK * 2, BLOCK] * 20
    assert_cut_off(config)
    assert len(line.starts) == 1 + TRIES


def test_a_second_fetch_goes_on_where_the_first_gave_up(line, config):
    line.drops = [BLOCK, 0, 0, BLOCK + 7, *NOTHING, BLOCK]
    assert_cut_off(config)
    tries = len(line.starts)
    assert tries == 4 + TRIES
    assert_arrived(line, config)
    assert line.starts[tries:] == [BLOCK * 2, BLOCK * 3]


def other(line, extra=b""):
    """Returns another archive of the same size, or a longer one."""
    return line.content.replace(b"jpgjpg", b"JPGJPG") + extra


@pytest.mark.parametrize("sums", [True, False], ids=["sums", "no sums"])
@pytest.mark.parametrize(
    ("etag", "extra"), [('"2"', b""), (None, bytes(512))], ids=["etag", "size"]
)
def test_two_states_of_a_file_are_never_glued_together(line, config, sums, etag, extra):
    line.sums, line.etag = sums, etag and '"1"'
    line.drops = [BLOCK, *NOTHING]
    assert_cut_off(config)
    line.content, line.etag = other(line, extra), etag
    assert_arrived(line, config)


def test_a_file_that_changes_between_two_tries_is_fetched_anew(line, config):
    def change():
        line.content, line.etag = other(line), '"2"'

    line.sums, line.drops, line.after = False, [BLOCK], change
    assert_arrived(line, config)


def test_a_file_that_has_become_shorter_is_fetched_anew(line, home, config):
    line.sums, line.drops = False, [BLOCK * 9, *NOTHING]
    assert_cut_off(config)
    shorter = write_tar(home / "wiki_crop.tar", WIKI | {"wiki_crop/big": bytes(7 * BLOCK)})
    line.content, line.etag = shorter.read_bytes(), '"2"'
    assert_arrived(line, config)


def test_what_arrived_before_is_not_used_if_nobody_knows_of_what_it_is_part(line, config):
    config.raw.mkdir(parents=True)
    (config.raw / "wiki_crop.tar.part").write_bytes(bytes(1000))
    assert_arrived(line, config)


def test_a_wrong_checksum_lets_the_next_try_start_clean(line, config):
    line.drops = [BLOCK, *NOTHING]
    assert_cut_off(config)
    partial = config.raw / "wiki_crop.tar.part"
    partial.write_bytes(bytes(partial.stat().st_size))
    with pytest.raises(AgelibError, match="does not have the SHA256"):
        download.fetch("wiki", config)
    assert listing(config.raw) == []
    assert_arrived(line, config)


def test_no_space_is_noticed_before_the_first_byte_is_written(line, config, monkeypatch):
    monkeypatch.setattr(disk_errors.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(AgelibError, match="are free: make room"):
        download.fetch("wiki", config)
    assert not (config.raw / "wiki_crop.tar.part").exists()


@pytest.mark.parametrize(("name", "expected"), [("wiki", WIKI), ("utkface", GOOD)])
def test_extracting_gives_the_archives_folder(name, expected, home, config):
    download.fetch(name, config)
    folder = download.extract(name, config)
    assert folder == config.raw / DATASETS[name].archive.folder
    assert contents(folder) == expected


def test_an_archive_put_there_by_hand_is_extracted(config):
    write_tar(config.raw / "UTKFace.tar.gz", GOOD)
    assert contents(download.extract("utkface", config)) == GOOD


def test_an_archive_is_extracted_again_only_when_it_changed(config):
    path = write_tar(config.raw / "UTKFace.tar.gz", GOOD)
    folder = download.extract("utkface", config)
    (folder / "mine").touch()
    assert "UTKFace/mine" in contents(download.extract("utkface", config))
    write_tar(path, GOOD | {"UTKFace/3_0_0_3.jpg": b"three" * 999})
    assert contents(download.extract("utkface", config)) == GOOD | {
        "UTKFace/3_0_0_3.jpg": b"three" * 999
    }


def test_a_folder_that_was_deleted_is_extracted_again(config):
    write_tar(config.raw / "UTKFace.tar.gz", GOOD)
    shutil.rmtree(download.extract("utkface", config))
    assert contents(download.extract("utkface", config)) == GOOD


def test_a_folder_without_its_archive_will_do(config):
    path = write_tar(config.raw / "UTKFace.tar.gz", GOOD)
    download.extract("utkface", config)
    path.unlink()
    assert contents(download.extract("utkface", config)) == GOOD


def test_files_of_the_user_are_not_replaced(config):
    archive = write_tar(config.raw / "UTKFace.tar.gz", GOOD)
    own = [config.raw / "UTKFace.tar.gz.json", config.raw / "UTKFace" / "notes.txt"]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    with pytest.raises(AgelibError, match=r"UTKFace is there already.* move it to another folder"):
        download.extract("utkface", config)
    assert [path.read_text() for path in own] == ["mine", "mine"]
    own.pop().unlink()
    (config.raw / "UTKFace").rmdir()
    (config.raw / "UTKFace.json").write_text('["mine"]')
    assert contents(download.extract("utkface", config)) == GOOD
    archive.unlink()
    assert contents(download.extract("utkface", config)) == GOOD
    assert (config.raw / "UTKFace.json").read_text() == '["mine"]'
    assert own[0].read_text() == "mine"


def test_a_folder_that_an_earlier_version_unpacked_is_known(config):
    archive = write_tar(config.raw / "UTKFace.tar.gz", GOOD)
    folder = download.extract("utkface", config)
    (folder / ".origin.json").rename(config.raw / "UTKFace.json")
    assert contents(download.extract("utkface", config)) == GOOD
    write_tar(archive, GOOD | {"UTKFace/9_0_0_9.jpg": b"nine"})
    assert "UTKFace/9_0_0_9.jpg" in contents(download.extract("utkface", config))


def test_extracting_nothing_names_the_notebook(config):
    with pytest.raises(AgelibError, match=r"wiki_crop\.tar is missing: .*notebook 01"):
        download.extract("wiki", config)


def test_no_space_is_noticed_before_extracting(config, monkeypatch):
    write_tar(config.raw / "wiki_crop.tar", WIKI)
    monkeypatch.setattr(disk_errors.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(AgelibError, match="are free: make room"):
        download.extract("wiki", config)
    assert not (config.raw / "wiki_crop").exists()


def assert_refused(name, config, sentence):
    """Extracts what must be refused in one sentence, with nothing half done left behind."""
    file = config.raw / DATASETS[name].archive.file
    with pytest.raises(AgelibError, match=sentence) as caught:
        download.extract(name, config)
    assert file.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(listing(config.raw)) <= {file.name, f".{file.name}.json"}


# A header takes 512 bytes; each content here takes 1024 + 512: 1200 bytes, filled up.
@pytest.mark.parametrize(
    "kept",
    [0, 300, 512 + 1000, 512 + 1536, 512 + 1536 + 200, 2 * (512 + 1536)],
    ids=["nothing", "header", "content", "between", "next header", "without end"],
)
def test_a_truncated_tar_is_damaged(config, kept):
    path = write_tar(config.raw / "wiki_crop.tar", WIKI)
    path.write_bytes(path.read_bytes()[:kept])
    assert_refused("wiki", config, r"is damaged: .*: delete it and run the download step again")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95])
def test_a_truncated_gzip_is_damaged(config, share):
    path = write_tar(config.raw / "UTKFace.tar.gz", {"UTKFace/a": os.urandom(9999)} | GOOD)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert_refused("utkface", config, "is damaged")


def test_a_damaged_header_does_not_end_the_archive_early(config):
    path = write_tar(config.raw / "wiki_crop.tar", WIKI)
    content = bytearray(path.read_bytes())
    content[512 + 1536 + 150] ^= 1  # in the checksum of the second header
    path.write_bytes(content)
    assert_refused("wiki", config, "is damaged")


@pytest.mark.parametrize("size", [64, 20_000], ids=["wrong checksum", "not decodable"])
def test_garbage_inside_a_gzip_is_damage(config, size):
    text = "".join(str(i * i) for i in range(100_000)).encode()
    path = write_tar(config.raw / "UTKFace.tar.gz", {"UTKFace/a": text})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + size] = bytes(size)
    path.write_bytes(content)
    assert_refused("utkface", config, "is damaged")


def test_a_web_page_is_no_archive(config):
    config.raw.mkdir(parents=True)
    (config.raw / "wiki_crop.tar").write_bytes(b"<html>" * 500)
    assert_refused("wiki", config, "is damaged")


@pytest.mark.parametrize(
    "entry",
    [
        special("../evil"),
        special("UTKFace/../../../evil"),
        special("UTKFace/link", tarfile.SYMTYPE, "../../../evil"),
        special("UTKFace/link", tarfile.SYMTYPE, "/evil"),
        special("UTKFace/link", tarfile.LNKTYPE, "../evil"),
        special("UTKFace/device", tarfile.CHRTYPE),
        special("UTKFace/pipe", tarfile.FIFOTYPE),
    ],
    ids=["parent", "dots", "symlink", "absolute symlink", "hard link", "device", "pipe"],
)
def test_an_unsafe_member_is_refused(config, tmp_path, entry):
    write_tar(config.raw / "UTKFace.tar.gz", GOOD, entry)
    assert_refused("utkface", config, "would lie outside, which is not safe.*: delete it")
    assert not list(tmp_path.rglob("evil"))


def test_links_are_refused_even_inside_the_folder(config):
    link = special("UTKFace/3_0_0_3.jpg", tarfile.SYMTYPE, "2_0_0_2.jpg")
    write_tar(config.raw / "UTKFace.tar.gz", GOOD, link)
    assert_refused("utkface", config, "would lie outside, which is not safe")


def test_nothing_is_written_through_a_link(config, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    link = special("UTKFace/link", tarfile.SYMTYPE, str(outside))
    write_tar(config.raw / "UTKFace.tar.gz", GOOD, link, special("UTKFace/link/evil"))
    assert_refused("utkface", config, "would lie outside, which is not safe")
    assert listing(outside) == []


def test_an_absolute_name_is_refused(config, tmp_path):
    entry = special(str(tmp_path / "evil"))
    write_tar(config.raw / "UTKFace.tar.gz", GOOD, entry)
    assert_refused("utkface", config, "would lie outside, which is not safe")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("inside", [WIKI, {"UTKFace": b"a file"}], ids=["other", "file"])
def test_an_archive_of_something_else_is_refused(config, inside):
    write_tar(config.raw / "UTKFace.tar.gz", inside)
    assert_refused("utkface", config, "but no folder UTKFace")


def test_a_new_archive_that_is_damaged_leaves_the_old_folder(config):
    path = write_tar(config.raw / "UTKFace.tar.gz", GOOD)
    folder = download.extract("utkface", config)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(AgelibError, match="is damaged"):
        download.extract("utkface", config)
    assert contents(folder) == GOOD


# The archive has four files; then the old folder is moved away, and the new one to its place.
@pytest.mark.parametrize("moment", [2, 4, 5], ids=["unpacking", "first move", "second move"])
def test_extracting_is_whole_or_not_at_all_when_killed(config, moment):
    old, new = GOOD, GOOD | {"UTKFace/3_0_0_3.jpg": b"3" * 999, "UTKFace/4_0_0_4.jpg": b"4"}
    path = write_tar(config.raw / "UTKFace.tar.gz", old)
    folder = download.extract("utkface", config)
    write_tar(path, new)
    command = [sys.executable, "-c", KILLED, path, folder, str(moment)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (config.raw / ".UTKFace" / "new" / "left").touch()
    assert contents(folder) == ({} if moment == 5 else old)
    assert contents(download.extract("utkface", config)) == new
    assert not (config.raw / ".UTKFace").exists()


@pytest.fixture
def folders(config):
    """The two places where an archive may lie."""
    return [config.raw, config.drive / "archives"]


def write_any(path, images, top="UTKFace"):
    """Writes an archive of the kind that its name says."""
    inside = {f"{top}/{name}": content for name, content in images.items()}
    if path.suffix.lower() == ".zip":
        return write_zip(path, inside)
    write_tar(path, inside)
    if path.suffix == ".tgz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("place", "name"), [(1, UTKFACE.file), *((place, name) for place in (0, 1) for name in NAMES)]
)
def test_an_archive_is_found_under_the_names_that_people_have(folders, config, place, name, capsys):
    path = write_any(folders[place] / name, IMAGES)
    content = path.read_bytes()
    assert download.fetch("utkface", config) == config.raw / name
    assert f"UTKFace.tar.gz comes from {path}." in capsys.readouterr().err.splitlines()
    assert (config.raw / name).read_bytes() == path.read_bytes() == content
    folder = download.extract("utkface", config)
    assert {path.name: path.read_bytes() for path in folder.glob("[!.]*")} == IMAGES


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["photos.zip", "utkface.rar", "wiki_crop.tar", "UTKFace", ".zip"])
def test_other_names_are_left_alone(folders, config, name, capsys):
    folders[1].mkdir(parents=True)
    (folders[1] / name).write_bytes(b"other")
    with pytest.raises(AgelibError, match="could not be fetched"):
        download.fetch("utkface", config)
    said = capsys.readouterr().err
    assert "UTKFace.tar.gz: non-commercial" in said
    assert "is not used" not in said
    assert listing(config.raw) == []


@pytest.mark.usefixtures("offline")
def test_a_folder_is_no_archive(folders, config, capsys):
    (folders[0] / "archive.zip").mkdir(parents=True)
    with pytest.raises(AgelibError, match="could not be fetched"):
        download.fetch("utkface", config)
    assert "is not used" not in capsys.readouterr().err


@pytest.mark.usefixtures("offline")
def test_an_official_archive_must_have_the_checksum(folders, config, monkeypatch, capsys):
    path = write_any(folders[1] / "wiki_crop (1).tar", IMAGES, "wiki_crop")
    with pytest.raises(AgelibError, match="could not be fetched"):
        download.fetch("wiki", config)
    assert f"{path} is not used for wiki_crop.tar: it does not have the MD5 f536" in (
        capsys.readouterr().err
    )
    assert listing(config.raw) == []
    official(monkeypatch, "wiki", "http://127.0.0.1:9", path)
    assert download.fetch("wiki", config).read_bytes() == path.read_bytes()


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["wiki_crop.zip", "wiki_crop.tar.gz"])
def test_another_packing_needs_no_checksum(folders, config, name):
    write_any(folders[0] / name, IMAGES, "wiki_crop")
    assert download.fetch("wiki", config) == folders[0] / name
    folder = download.extract("wiki", config)
    assert {path.name: path.read_bytes() for path in folder.glob("[!.]*")} == IMAGES


@pytest.mark.usefixtures("offline")
def test_the_next_one_is_tried_after_one_that_will_not_do(folders, config, capsys):
    cats = write_zip(folders[0] / "archive.zip", {f"{i}/a": b"" for i in "edcba"})
    (folders[0] / "UTKFace.zip").write_bytes(b"half a zip")
    write_zip(folders[1] / "archive.zip", kaggle_layout(IMAGES))
    good = write_zip(folders[1] / "utkface-new.zip", kaggle_layout(IMAGES))
    before = cats.read_bytes()
    assert download.fetch("utkface", config) == folders[0] / "utkface-new.zip"
    assert cats.read_bytes() == before  # the user's own, with the name of what lies on Drive
    said = capsys.readouterr().err.splitlines()
    for line in (
        f"{folders[0] / 'UTKFace.zip'} is not used for UTKFace.tar.gz: it is damaged: file could "
        "not be opened successfully.",
        f"{folders[0] / 'archive.zip'} is not used for UTKFace.tar.gz: it holds a, b, c and 2 "
        "more, but no folder UTKFace.",
        f"UTKFace.tar.gz comes from {good}.",
    ):
        assert line in said


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("top", ["cats", "UTKFace"])
@pytest.mark.parametrize("name", ["UTKFace.tar.gz", "utkface.tgz", "UTKFace.tar", "archive.zip"])
def test_what_is_damaged_or_another_thing_leaves_nothing_behind(folders, config, name, top, capsys):
    images = {"a.jpg": os.urandom(5000), "b.jpg": os.urandom(5000)}
    path = write_any(folders[1] / name, images, top)
    if top == "UTKFace":
        content = bytearray(path.read_bytes())
        path.write_bytes(content[:2000] + bytes(100) + content[2100:7000])
    with pytest.raises(AgelibError, match="could not be fetched"):
        download.fetch("utkface", config)
    assert f"{path} is not used for UTKFace.tar.gz: it " in capsys.readouterr().err
    assert listing(config.raw) == []


@pytest.mark.usefixtures("offline")
def test_the_full_disk_is_not_the_archives_fault(folders, config, monkeypatch, capsys):
    write_zip(folders[1] / "archive.zip", kaggle_layout(IMAGES))
    monkeypatch.setattr(shutil, "copyfile", full_disk)
    with pytest.raises(AgelibError, match="No space left"):
        download.fetch("utkface", config)
    assert "is not used" not in capsys.readouterr().err
