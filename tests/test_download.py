import dataclasses
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
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import gdown
import pytest
import requests

from agelib import AgelibError, download, files
from agelib.config import Config
from agelib.download import ARCHIVES
from agelib.files import sha256

GOOD = {"UTKFace/1_0_0_1.jpg": b"one" * 400, "UTKFace/2_0_0_2.jpg": b"two" * 400}
WIKI = {"wiki_crop/wiki.mat": b"mat" * 400, "wiki_crop/00/1_1981-05-05_2009.jpg": b"jpg" * 400}


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
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder.parent).as_posix(): path.read_bytes() for path in paths}


def assert_one_sentence(caught):
    text = str(caught.value)
    assert "\n" not in text
    assert "object at 0x" not in text


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


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The seconds that a download would have waited; nobody waits."""
    seconds = []
    monkeypatch.setattr(download, "sleep", seconds.append)
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
    monkeypatch.setattr(download, "need_space", lambda *_: None)


@pytest.fixture
def offline(no_mirror, monkeypatch):
    def refuse(*_, **__):
        raise requests.ConnectionError("name not resolved")

    monkeypatch.setattr(requests, "get", refuse)
    monkeypatch.setattr(gdown, "download", refuse)


@pytest.mark.parametrize("name", ["wiki", "utkface"])
def test_an_archive_arrives_whole_from_a_mirror(name, mirrors, config):
    path = download.fetch(name, config)
    assert path == config.raw / ARCHIVES[name].file
    assert path.read_bytes() == (mirrors / path.name).read_bytes()
    assert listing(config.raw) == [path.name, f"{path.name}.json"]


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
    assert_one_sentence(caught)
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
    with pytest.raises(AgelibError, match=r"wiki_crop\.tar could not be fetched.*AGELIB_MIRROR"):
        download.fetch("wiki", config)
    assert listing(config.raw) == []


def official(monkeypatch, name, url, path):
    """Lets an archive's official home be a small one on this machine."""
    digest = files.hash_file(path, "md5")
    archive = dataclasses.replace(ARCHIVES[name], url=f"{url}/{path.name}", md5=digest)
    monkeypatch.setitem(ARCHIVES, name, archive)


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
    archive = dataclasses.replace(ARCHIVES["imdb"], url="http://127.0.0.1:9/imdb_crop.tar")
    monkeypatch.setitem(ARCHIVES, "imdb", archive)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(AgelibError) as caught:
        download.fetch("imdb", config)
    for part in (f"imdb_crop.tar is not in {config.mirror} and", archive.url, "AGELIB_MIRROR"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert listing(config.raw) == []


@pytest.mark.usefixtures("offline")
def test_the_sample_has_no_other_home_than_its_mirror(tmp_path):
    config = Config.from_profile("sample", data=tmp_path)
    Path(config.mirror).mkdir(parents=True)
    with pytest.raises(AgelibError, match=r"wiki_crop\.tar could not be fetched from ") as caught:
        download.fetch("wiki", config)
    text = str(caught.value)
    assert text.endswith(f": delete {config.mirror} and run the download step again.")
    assert ARCHIVES["wiki"].home not in text
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
    assert_one_sentence(caught)
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
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(AgelibError, match="are free: make room"):
        download.fetch("wiki", config)
    assert listing(config.raw) == []


@pytest.mark.parametrize("name", ["wiki", "imdb", "utkface"])
@pytest.mark.usefixtures("offline")
def test_without_network_the_message_names_the_way_out(name, config):
    archive = ARCHIVES[name]
    with pytest.raises(AgelibError) as caught:
        download.fetch(name, config)
    for part in (archive.file, archive.home, "AGELIB_MIRROR", "name not resolved"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert listing(config.raw) == []


@pytest.mark.usefixtures("no_mirror")
def test_official_archives_are_checked_against_their_md5(config, monkeypatch):
    asked = []

    def arrive(url, partial):
        asked.append(url)
        write_tar(partial, WIKI)

    monkeypatch.setattr(download, "_append_rest", arrive)
    with pytest.raises(AgelibError, match="does not have the MD5 f536eb7f5eae229ae8f286184364b42b"):
        download.fetch("wiki", config)
    assert listing(config.raw) == []
    archive = ARCHIVES["wiki"]
    assert asked == [archive.url]
    assert archive.url == (
        "https://data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki/static/wiki_crop.tar"
    )


@pytest.mark.usefixtures("no_mirror")
def test_utkface_comes_from_google_drive_with_its_resource_key(config, monkeypatch):
    asked = []

    def fake(url, output, **_):
        asked.append(url)
        with tarfile.open(output, "w:gz") as tar:
            tar.addfile(special("UTKFace/1_0_0_1.jpg"), io.BytesIO(b"good"))
        return output

    monkeypatch.setattr(gdown, "download", fake)
    assert tarfile.is_tarfile(download.fetch("utkface", config))
    assert "0BxYys69jI14kYVM3aVhKS1VhRUk" in asked[0]
    assert "resourcekey=0-dabpv_3J0C0cditpiAfhAw" in asked[0]


@pytest.mark.usefixtures("no_mirror")
def test_utkface_from_google_drive_is_read_to_its_end(config, monkeypatch, tmp_path):
    whole = write_tar(tmp_path / "UTKFace.tar.gz", GOOD).read_bytes()

    def cut_off(_url, output, **_):
        with open(output, "wb") as file:
            file.write(whole[:-9])

    monkeypatch.setattr(gdown, "download", cut_off)
    with pytest.raises(AgelibError, match=r"could not be fetched from .*it is damaged: ") as caught:
        download.fetch("utkface", config)
    assert_one_sentence(caught)
    assert listing(config.raw) == []


@pytest.mark.usefixtures("no_mirror")
def test_google_drive_is_asked_again_when_the_connection_drops(config, monkeypatch, pauses):
    drops = [requests.ConnectionError("dropped"), requests.Timeout("too slow")]

    def fake(_url, output, **_):
        if drops:
            Path(f"{output}half").touch()
            raise drops.pop()
        assert list(config.raw.iterdir()) == []
        write_tar(Path(output), GOOD)

    monkeypatch.setattr(gdown, "download", fake)
    assert listing(download.fetch("utkface", config).parent) == [
        "UTKFace.tar.gz",
        "UTKFace.tar.gz.json",
    ]
    assert pauses == [1, 2]


@pytest.mark.usefixtures("no_mirror")
def test_what_google_drive_refuses_is_not_asked_for_again(config, monkeypatch, pauses):
    def refuse(*_, **__):
        raise gdown.exceptions.FileURLRetrievalError("no permission\nlong advice")

    monkeypatch.setattr(gdown, "download", refuse)
    with pytest.raises(AgelibError, match=r"\(no permission\): try again later") as caught:
        download.fetch("utkface", config)
    assert_one_sentence(caught)
    assert pauses == []


@pytest.mark.parametrize("page", [b"<html>Too many users have viewed this file</html>", None])
@pytest.mark.usefixtures("no_mirror")
def test_a_web_page_in_place_of_utkface_is_refused(config, monkeypatch, page):
    def fake(_url, output, **_):
        if page:
            with open(output, "wb") as file:
                file.write(page)

    monkeypatch.setattr(gdown, "download", fake)
    with pytest.raises(AgelibError, match=r"sent a web page.*AGELIB_MIRROR"):
        download.fetch("utkface", config)
    assert listing(config.raw) == []


@pytest.mark.usefixtures("no_mirror")
def test_no_space_is_noticed_before_google_drive_is_asked(config, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(download, "need_space", files.need_space)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**7))
    monkeypatch.setattr(gdown, "download", refuse)
    with pytest.raises(AgelibError, match=r"needs 0\.1 GB, but only 0\.0 GB are free"):
        download.fetch("utkface", config)


def by_hand(home, config):
    config.raw.mkdir(parents=True)
    return Path(shutil.copy(home / "wiki_crop.tar", config.raw))


@pytest.mark.parametrize("sums", [True, False], ids=["sums", "no sums"])
def test_an_archive_put_there_by_hand_is_kept(mirrors, config, monkeypatch, sums):
    path = by_hand(mirrors, config)
    if not sums:
        (mirrors / "SHA256SUMS").unlink()
    monkeypatch.setattr(download, "_fetch_mirror", None)
    written = path.stat().st_mtime_ns
    assert download.fetch("wiki", config) == path
    assert path.stat().st_mtime_ns == written
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
    monkeypatch.setattr(download, "_fetch_mirror", None)
    assert download.fetch("wiki", config) == path
    assert contents(download.extract("wiki", config)) == WIKI


def test_what_a_killed_copy_left_goes_away(home, config):
    config.raw.mkdir(parents=True)
    (config.raw / ".wiki_crop.tar.123.part").touch()
    path = download.fetch("wiki", config)
    assert listing(config.raw) == [path.name, f"{path.name}.json"]


# Of what arrives only whole blocks are kept.
BLOCK = download._BLOCK
NOTHING = [0] * download._TRIES


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
    assert listing(config.raw) == [path.name, f"{path.name}.json"]


def assert_cut_off(config):
    with pytest.raises(AgelibError, match=r"wiki_crop\.tar could not be fetched from http"):
        download.fetch("wiki", config)
    assert listing(config.raw) == ["wiki_crop.tar.part", "wiki_crop.tar.part.json"]


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
    assert_one_sentence(caught)


ARCHIVE, SUMS = ("GET", "/wiki_crop.tar"), ("GET", "/SHA256SUMS")


@pytest.mark.parametrize("place", [ARCHIVE, SUMS])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(line, config, pauses, place, status):
    line.refusals[place] = [status] * (download._TRIES - 1)
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
    line.refusals[place] = [503] * (download._TRIES + 1)
    with pytest.raises(AgelibError, match=r"\(HTTP 503\): try again later") as caught:
        download.fetch("wiki", config)
    assert_one_sentence(caught)
    assert line.refusals[place] == [503]
    assert len(pauses) == download._TRIES - 1


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
        download.tqdm, "wrapattr", functools.partial(download.tqdm.wrapattr, disable=True)
    )
    line.drops = [BLOCK] * 3
    assert_arrived(line, config)


def test_a_server_that_knows_no_ranges_starts_again(line, config):
    line.ranges, line.drops = False, [BLOCK * 2, BLOCK * 9, 7, BLOCK]
    assert_arrived(line, config)


def test_a_server_that_gets_no_further_than_before_is_given_up(line, config):
    line.ranges, line.drops = False, [BLOCK * 2, BLOCK] * 20
    assert_cut_off(config)
    assert len(line.starts) == 1 + download._TRIES


def test_a_second_fetch_goes_on_where_the_first_gave_up(line, config):
    line.drops = [BLOCK, 0, 0, BLOCK + 7, *NOTHING, BLOCK]
    assert_cut_off(config)
    tries = len(line.starts)
    assert tries == 4 + download._TRIES
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
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(AgelibError, match="are free: make room"):
        download.fetch("wiki", config)
    assert not (config.raw / "wiki_crop.tar.part").exists()


@pytest.mark.parametrize(("name", "expected"), [("wiki", WIKI), ("utkface", GOOD)])
def test_extracting_gives_the_archives_folder(name, expected, home, config):
    download.fetch(name, config)
    folder = download.extract(name, config)
    assert folder == config.raw / ARCHIVES[name].folder
    assert contents(folder) == expected


def test_an_archive_put_there_by_hand_is_extracted(config):
    write_tar(config.raw / "UTKFace.tar.gz", GOOD)
    assert contents(download.extract("utkface", config)) == GOOD


def test_an_archive_is_extracted_again_only_when_it_changed(config):
    path = write_tar(config.raw / "UTKFace.tar.gz", GOOD)
    folder = download.extract("utkface", config)
    (folder / "mine").touch()
    assert "mine" in listing(download.extract("utkface", config))
    write_tar(path, GOOD | {"UTKFace/3_0_0_3.jpg": b"three" * 999})
    assert listing(download.extract("utkface", config)) == [
        "1_0_0_1.jpg",
        "2_0_0_2.jpg",
        "3_0_0_3.jpg",
    ]


def test_a_folder_that_was_deleted_is_extracted_again(config):
    write_tar(config.raw / "UTKFace.tar.gz", GOOD)
    shutil.rmtree(download.extract("utkface", config))
    assert contents(download.extract("utkface", config)) == GOOD


def test_a_folder_without_its_archive_will_do(config):
    path = write_tar(config.raw / "UTKFace.tar.gz", GOOD)
    download.extract("utkface", config)
    path.unlink()
    assert contents(download.extract("utkface", config)) == GOOD


def test_extracting_nothing_names_the_notebook(config):
    with pytest.raises(AgelibError, match=r"wiki_crop\.tar is missing: .*notebook 01"):
        download.extract("wiki", config)


def test_no_space_is_noticed_before_extracting(config, monkeypatch):
    write_tar(config.raw / "wiki_crop.tar", WIKI)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(AgelibError, match="are free: make room"):
        download.extract("wiki", config)
    assert not (config.raw / "wiki_crop").exists()


def assert_refused(name, config, sentence):
    """Extracts what must be refused in one sentence, with nothing half done left behind."""
    file = config.raw / ARCHIVES[name].file
    with pytest.raises(AgelibError, match=sentence) as caught:
        download.extract(name, config)
    assert file.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(listing(config.raw)) <= {file.name, f"{file.name}.json"}


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
    assert_refused("utkface", config, "is not safe to unpack .*: do not use it")
    assert not list(tmp_path.rglob("evil"))


def test_links_are_refused_even_inside_the_folder(config):
    link = special("UTKFace/3_0_0_3.jpg", tarfile.SYMTYPE, "2_0_0_2.jpg")
    write_tar(config.raw / "UTKFace.tar.gz", GOOD, link)
    assert_refused("utkface", config, "is not safe to unpack")


def test_nothing_is_written_through_a_link(config, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    link = special("UTKFace/link", tarfile.SYMTYPE, str(outside))
    write_tar(config.raw / "UTKFace.tar.gz", GOOD, link, special("UTKFace/link/evil"))
    assert_refused("utkface", config, "is not safe to unpack")
    assert listing(outside) == []


def test_an_absolute_name_is_refused(config, tmp_path):
    entry = special(str(tmp_path / "evil"))
    write_tar(config.raw / "UTKFace.tar.gz", GOOD, entry)
    assert_refused("utkface", config, "is not safe to unpack")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("inside", [WIKI, {"UTKFace": b"a file"}], ids=["other", "file"])
def test_an_archive_of_something_else_is_refused(config, inside):
    write_tar(config.raw / "UTKFace.tar.gz", inside)
    assert_refused("utkface", config, "holds no folder UTKFace: it is another archive")


def test_a_new_archive_that_is_damaged_leaves_the_old_folder(config):
    path = write_tar(config.raw / "UTKFace.tar.gz", GOOD)
    folder = download.extract("utkface", config)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(AgelibError, match="is damaged"):
        download.extract("utkface", config)
    assert contents(folder) == GOOD


KILLED = """
import os, signal, sys, tarfile
from pathlib import Path
from agelib import archives

moments = iter(range(int(sys.argv[3])))

def before(function):
    def killed_in_time(*arguments, **options):
        if next(moments, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return killed_in_time

tarfile.TarFile.extract = before(tarfile.TarFile.extract)
Path.rename = before(Path.rename)
archives.unpack(Path(sys.argv[1]), Path(sys.argv[2]))
"""


# The archive has four files; then the old folder is moved away, and the new one to its place.
@pytest.mark.parametrize("moment", [2, 4, 5], ids=["unpacking", "first move", "second move"])
def test_extracting_is_whole_or_not_at_all_when_killed(config, moment):
    old, new = GOOD, GOOD | {"UTKFace/3_0_0_3.jpg": b"3" * 999, "UTKFace/4_0_0_4.jpg": b"4"}
    path = write_tar(config.raw / "UTKFace.tar.gz", old)
    folder = download.extract("utkface", config)
    write_tar(path, new)
    command = [sys.executable, "-c", KILLED, path, folder, str(moment)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (config.raw / ".UTKFace" / "new" / "UTKFace" / "left").touch()
    assert contents(folder) == ({} if moment == 5 else old)
    assert contents(download.extract("utkface", config)) == new
    assert not (config.raw / ".UTKFace").exists()
