import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from agelib import AgelibError, disk_errors
from agelib.disk_errors import explained, reading, retrying


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that were made, in seconds; none takes any time."""
    made = []
    monkeypatch.setattr(disk_errors.time, "sleep", made.append)
    return made


def failing(number, times):
    """Returns a function that fails so many times with an error of the system, and its calls."""
    calls = []

    @retrying
    def work(value):
        calls.append(value)
        if len(calls) <= times:
            raise OSError(number, os.strerror(number))
        return value

    return work, calls


def sentence(number, *places, **options):
    with pytest.raises(AgelibError) as caught, explained("X failed", *places, **options):
        raise OSError(number, os.strerror(number))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("number", [errno.EIO, errno.EAGAIN, errno.ETIMEDOUT, errno.EBUSY])
def test_an_error_that_may_pass_is_waited_for(pauses, number):
    work, calls = failing(number, 2)
    assert work(7) == 7
    assert calls == [7, 7, 7]
    assert pauses == [2, 10]


def test_patience_ends(pauses):
    work, calls = failing(errno.EIO, 3)
    with pytest.raises(OSError, match="Input/output"):
        work(7)
    assert len(calls) == 3
    assert pauses == [2, 10]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOTCONN, errno.EACCES])
def test_an_error_that_stays_is_not_waited_for(pauses, number):
    work, calls = failing(number, 1)
    with pytest.raises(OSError, match=r"."):
        work(7)
    assert len(calls) == 1
    assert pauses == []


@pytest.mark.parametrize(
    ("number", "google", "elsewhere"),
    [
        (errno.EIO, "Google limits", "see whether the disk or its connection is at fault"),
        (errno.ENOTCONN, "drive.mount(config) again", "broke: restore it"),
        (errno.ESTALE, "drive.mount(config) again", "broke: restore it"),
        (errno.EACCES, "this Google account may read and write", "that you may read and write"),
        (errno.ENOSPC, "its trash counts", "or name another folder (AGELIB_DATA"),
        (errno.EDQUOT, "its trash counts", "or name another folder (AGELIB_DATA"),
        (errno.ENAMETOOLONG, "the folder can be used", "the folder can be used"),
    ],
)
def test_the_advice_suits_the_error_and_the_place(colab, tmp_path, number, google, elsewhere):
    for place, expected in ((colab.point / "MyDrive", google), (tmp_path, elsewhere)):
        said = sentence(number, place)
        assert said.startswith(f"X failed ({os.strerror(number)}): ")
        assert expected in said
        assert ("Drive broke" in said) == (place != tmp_path and "mount(" in expected)
        assert said.endswith(", then run this again; what is done already is kept.")


def test_off_colab_no_place_is_on_google_drive(colab, monkeypatch):
    assert disk_errors.on_google(colab.point / "MyDrive")
    monkeypatch.delenv("COLAB_RELEASE_TAG")
    assert not disk_errors.on_google(colab.point / "MyDrive")
    assert "Google" not in sentence(errno.EIO, colab.point / "MyDrive")


def test_the_folder_that_is_written_is_the_one_that_is_full(colab, tmp_path):
    said = sentence(errno.ENOSPC, colab.point, tmp_path, size=1_234_500_000)
    assert "1,234.5 MB are needed, " in said
    assert "make room there" in said
    assert "trash" in sentence(errno.ENOSPC, tmp_path, colab.point)


def test_a_folder_whose_space_nobody_knows_is_full():
    assert "): 0.0 MB are free" in sentence(errno.ENOSPC, Path("/nowhere"))


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(AgelibError, match=r"^as it is$"), reading(tmp_path):
        raise AgelibError("as it is")
    with pytest.raises(KeyboardInterrupt), reading(tmp_path):
        raise KeyboardInterrupt


def test_reading_names_the_place(tmp_path):
    with (
        pytest.raises(AgelibError, match=f"{tmp_path} could not be read .No such file"),
        reading(tmp_path),
    ):
        (tmp_path / "nothing").read_bytes()


def test_need_space_names_both_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(
        disk_errors.shutil, "disk_usage", lambda _: SimpleNamespace(free=2_500_000_000)
    )
    with pytest.raises(
        AgelibError, match=r"7,000\.0 MB are needed, 2,500\.0 MB are free: make room"
    ):
        disk_errors.need_space(tmp_path, 7_000_000_000)


def test_need_space_is_content_with_just_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_errors.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    disk_errors.need_space(tmp_path / "new", 1000)
    assert (tmp_path / "new").is_dir()
    with pytest.raises(AgelibError, match="are free"):
        disk_errors.need_space(tmp_path / "new", 1001)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (OSError("it is damaged"), False),
        (ValueError("no number"), False),
    ],
)
def test_a_full_disk_is_told_from_other_troubles(error, full):
    assert disk_errors.is_full(error) == full


def test_work_that_gets_further_is_tried_again_at_once(pauses):
    done = []

    def work():
        if len(done) < 6:
            if len(done) % 2 == 0 or pauses[-1:] == [7]:
                done.append("a part")
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    retrying(work, pauses=(1, 7), progress=lambda: len(done))()
    assert len(done) == 6
    assert set(pauses) == {1, 7}
