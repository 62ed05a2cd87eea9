import pytest
import requests
from conftest import answering, serving

from agelib import disk_errors
from agelib.datasets import transfer


@pytest.fixture(autouse=True)
def straight(monkeypatch):
    """No proxy stands between the tests and this machine's servers, and nobody waits."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(disk_errors.time, "sleep", lambda _: None)


def accept(path):
    pass


def refuse(path):
    raise ValueError("it is wrong")


@pytest.mark.parametrize(
    ("page", "named"),
    [
        (b"<html><title>\n You&#39;re late </title>", ' "You\'re late"'),
        (b"<html>Sign in", ""),
        (b"\xff\xfe<title></title>", ""),
        (b"", ""),
    ],
    ids=["title", "none", "empty", "nothing"],
)
def test_a_web_page_is_told_from_a_file(tmp_path, page, named):
    with (
        serving(answering(page, "text/html; charset=utf-8")) as url,
        pytest.raises(OSError, match=f"^it sent a web page{named} in place of the archive$"),
    ):
        transfer.download(url, tmp_path / "file", accept)
    assert list(tmp_path.iterdir()) == []


def test_a_page_with_an_error_is_an_error(tmp_path):
    with (
        serving(answering(b"<title>No</title>", "text/html", 404)) as url,
        pytest.raises(requests.HTTPError) as caught,
    ):
        transfer.download(url, tmp_path / "file", accept)
    assert transfer.reason(caught.value) == "HTTP 404"


def test_a_file_gets_its_name_once_it_is_verified(tmp_path):
    target = tmp_path / "file"
    with serving(answering(b"content")) as url:
        with pytest.raises(ValueError, match="it is wrong"):
            transfer.download(url, target, refuse)
        assert list(tmp_path.iterdir()) == []
        transfer.download(url, target, accept)
    assert target.read_bytes() == b"content"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_was_there_stays_when_another_is_wrong(tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with serving(answering(b"content")) as url, pytest.raises(ValueError, match="it is wrong"):
        transfer.download(url, target, refuse)
    assert target.read_bytes() == b"old"


def test_nobody_there_is_named(tmp_path):
    with pytest.raises(requests.ConnectionError) as caught:
        transfer.download("http://127.0.0.1:9", tmp_path / "file", accept)
    assert transfer.reason(caught.value) == "no connection to 127.0.0.1"
