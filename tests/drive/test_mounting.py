import errno
import os
from pathlib import Path

import pytest

from agelib import AgelibError
from agelib.config import Config
from agelib.drive import mounting


class MessageError(Exception):
    """As google.colab._message has it."""


class TIMEOUT(Exception):
    """As pexpect has it."""


@pytest.fixture
def config(tmp_path):
    return Config.from_profile("wiki", data=tmp_path / "data")


def failing(*errors):
    """Returns a function that raises one error after another, then does nothing."""
    left = list(errors)

    def fail(*arguments, **options):
        if left and (error := left.pop(0)):
            raise error

    return fail


def refusal(config):
    with pytest.raises(AgelibError) as caught:
        mounting.mount(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Mounting


def test_off_colab_mounting_makes_a_folder(config):
    assert mounting.mount(config) == config.drive == config.data / "drive"
    assert config.drive.is_dir()
    assert mounting.flush() is None


def test_agelib_drive_that_is_a_file_is_named(config, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("AGELIB_DRIVE", str(tmp_path / "file"))
    assert "file/age_gender cannot be used" in refusal(config)
    assert "AGELIB_DRIVE" in refusal(config)


def test_on_colab_google_drive_is_mounted(colab, config):
    assert mounting.mount(config) == config.drive
    assert config.drive.is_dir()
    assert colab.calls == [("mount", {})]


@pytest.mark.parametrize(
    ("error", "reason", "advice"),
    [
        (
            MessageError("Error: credential propagation was unsuccessful"),
            "Error: credential propagation was unsuccessful",
            "access was not allowed: run this cell again and, in Google's window",
        ),
        (
            ValueError("mount failed: invalid oauth code"),
            "mount failed: invalid oauth code",
            "access was not allowed",
        ),
        (
            ValueError("The domain policy has disabled Drive File Stream: https://x"),
            "The domain policy has disabled",
            "use another account",
        ),
        (
            ValueError(
                "mount failed: timeout during initial read of root folder; for more info: x"
            ),
            "timeout during initial read",
            "Google took too long: run this cell again",
        ),
        (
            TIMEOUT("<pexpect.popen_spawn.PopenSpawn object at 0x7f>\nsearcher: searcher_re:\n"),
            "(TIMEOUT)",
            "Google took too long: run this cell again",
        ),
        (
            ValueError("mount failed"),
            "(mount failed)",
            "run this cell again; if that does not help, choose Runtime > Restart session",
        ),
        (AssertionError(), "(AssertionError)", "Runtime > Restart session"),
    ],
)
def test_what_colab_says_becomes_what_to_do(colab, config, error, reason, advice):
    works, colab.drive.mount = colab.drive.mount, failing(error)
    said = refusal(config)
    assert said.startswith(f"{config.drive} cannot be used (")
    assert reason in said
    assert advice in said
    assert not config.drive.exists()
    colab.drive.mount = works
    mounting.mount(config)
    assert config.drive.is_dir()


NOT_EMPTY = ValueError("Mountpoint must not already contain files")


@pytest.mark.parametrize(
    ("names", "listed"),
    [("a", "holds a, written"), ("dabce", "holds a, b, c and 2 more, written")],
)
def test_files_where_drive_belongs_are_named_and_can_be_set_aside(colab, config, names, listed):
    colab.point.mkdir(parents=True)
    for name in names:
        (colab.point / name).touch()
    colab.drive.mount = failing(NOT_EMPTY)
    said = refusal(config)
    assert listed in said
    assert f"`!mv {colab.point} {colab.point}_before`" in said


def test_a_plain_folder_that_passes_for_drive_can_be_set_aside(colab, config):
    (colab.point / "MyDrive").mkdir(parents=True)
    colab.drive.mount = failing()  # "Drive already mounted"
    assert "holds MyDrive, written there while Drive was not mounted" in refusal(config)
    assert not config.drive.exists()


def test_nobody_is_told_to_clear_away_a_drive_that_is_mounted(colab, config, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda _: True)
    lost = OSError(errno.ENOTCONN, "Transport endpoint is not connected")
    monkeypatch.setattr(Path, "mkdir", failing(lost))
    colab.drive.mount = failing(NOT_EMPTY)
    said = refusal(config)
    assert "mounted already and in use: choose Runtime > Restart session" in said
    assert "!mv" not in said


def dead():
    return OSError(errno.ENOTCONN, "Transport endpoint is not connected")


@pytest.mark.parametrize("where", ["mount", "folder"])
def test_a_dead_connection_is_mounted_again_once(colab, config, monkeypatch, where):
    made = type(config.drive).mkdir
    fail = failing(dead())
    if where == "mount":
        mount = colab.drive.mount
        colab.drive.mount = lambda *a, **o: (mount(*a, **o), fail())
    else:
        monkeypatch.setattr(
            type(config.drive), "mkdir", lambda path, *a, **o: (fail(), made(path, *a, **o))
        )
    mounting.mount(config)
    assert colab.calls == [("mount", {}), ("mount", {"force_remount": True})]
    assert config.drive.is_dir()


def test_a_connection_that_stays_dead_says_so(colab, config):
    colab.drive.mount = failing(dead(), dead())
    said = refusal(config)
    assert "(Transport endpoint is not connected): the connection broke, and mounting again" in said
    assert "Runtime > Restart session" in said


def test_a_remount_that_is_refused_says_why(colab, config):
    colab.drive.mount = failing(dead(), MessageError("Error: credential propagation"))
    assert "access was not allowed" in refusal(config)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EIO, "Google limits how much may be read and written"),
        (errno.ENOSPC, "its trash counts: empty it"),
        (errno.EROFS, "make sure that this Google account may read and write there"),
    ],
)
def test_a_folder_that_cannot_be_made_says_why(colab, config, number, advice):
    colab.drive.mount = failing(OSError(number, os.strerror(number)))
    said = refusal(config)
    assert f"({os.strerror(number)})" in said
    assert advice in said
    assert said.endswith("then run this cell again.")


# Flushing


def test_on_colab_flushing_waits_for_google_drive(colab):
    mounting.flush()
    assert colab.calls == [("flush",)]


@pytest.mark.parametrize(
    "error", [ValueError("flush_and_unmount failed"), FileNotFoundError(2, "No such file")]
)
def test_a_flush_that_fails_says_what_to_do(colab, error):
    colab.drive.flush_and_unmount = failing(error)
    with pytest.raises(AgelibError, match="does not confirm that everything has arrived") as e:
        mounting.flush()
    assert "leave this notebook open, wait a few minutes and run this cell again" in str(e.value)
    assert "\n" not in str(e.value)
    mounting.flush()
