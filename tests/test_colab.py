"""The parts of the rehearsal in tests/colab that need no machine."""

import io
import json
import subprocess
import sys
from types import ModuleType

import pytest
from colab.google.colab import _message, files, output, userdata
from colab.google.colab import drive as google_drive
from colab.interruptions import Epochs, Shards
from colab.noise import find_error, find_noise
from colab.packages import compare
from colab.rehearsal import Outcome, Rehearsal, uncommitted
from colab.table import show
from tqdm import tqdm

from agelib import AgelibError, disk_errors
from agelib.config import Config
from agelib.drive import mounting


def notebook(*outputs):
    return {"cells": [{"cell_type": "markdown"}, {"cell_type": "code", "outputs": list(outputs)}]}


def stream(name, text):
    return {"output_type": "stream", "name": name, "text": text}


def test_additions_are_allowed():
    changes = compare({"numpy": "2.1.3"}, {"numpy": "2.1.3", "mtcnn": "1.0.0"})
    assert changes == ({"mtcnn": "1.0.0"}, [])


def test_upgrades_and_removals_are_not():
    changes = compare({"keras": "3.13.2", "numpy": "2.1.3"}, {"numpy": "2.3.0"})
    assert changes == ({}, ["keras 3.13.2 -> removed", "numpy 2.1.3 -> 2.3.0"])


@pytest.mark.parametrize("total", [3, 4_000_000, None])
def test_progress_bars_are_no_noise(total):
    written = io.StringIO()
    with tqdm(total=total, file=written, desc="clean wiki", unit=" images", mininterval=0) as bar:
        bar.set_postfix_str("epoch 1/2, loss 3.1")
        bar.update(2)
    assert written.getvalue()
    assert find_noise(notebook(stream("stderr", written.getvalue()))) == []


@pytest.mark.parametrize(
    "text",
    [
        "UserWarning: something",
        "Exception ignored in: <function A.__del__>",
        "I0000 00:00:1.1 cuda_executor.cc:1] 100% of it",
        "clean wiki: 100%|##########| 3/3 [00:01<00:00, 2.0 images/s]\nUserWarning: something",
    ],
)
def test_all_else_on_standard_error_is(text):
    (line,) = find_noise(notebook(stream("stderr", text.splitlines(keepends=True))))
    assert line == f"cell 1: {text.splitlines()[-1]}"


@pytest.mark.parametrize(
    "line",
    [
        "ERROR: pip's dependency resolver",
        "cp: cannot stat 'x'",
        "WARNING:tensorflow:5 out of the last 8 calls",
    ],
)
def test_some_complaints_are_standard_output(line):
    text = f"Mounted at /content/drive\n{line}\nNo error: all is well\n"
    assert find_noise(notebook(stream("stdout", text))) == [f"cell 1: {line}"]


def test_the_kernels_own_log_is_noise():
    assert find_noise(notebook(), "a warning\n\n") == ["log: a warning"]


def test_what_the_kernel_copied_from_its_log_to_a_cell_counts_once():
    shown = notebook(stream("stderr", "a warning\n"))
    assert find_noise(shown, "a warning\nanother\n") == ["cell 1: a warning", "log: another"]


def test_the_error_that_stopped_a_notebook_is_found():
    error = {"output_type": "error", "ename": "ValueError", "evalue": "mount failed"}
    assert find_error(notebook(stream("stdout", "x"), error)) == "cell 1: ValueError: mount failed"
    assert find_error(notebook()) == ""


def test_a_project_that_came_as_a_zip_file_is_rehearsed(tmp_path, monkeypatch):
    project = tmp_path / "agelib"
    (project / "notebooks").mkdir(parents=True)
    (project / "notebooks" / "01_download.ipynb").write_text("{}")
    (project / ".gitignore").write_text("/data/\n")
    (project / "data").mkdir()
    (project / "data" / "large").touch()
    address = 'Repository = "https://github.com/OWNER/agelib"'
    (project / "pyproject.toml").write_text(f"[project.urls]\n{address}\n")
    monkeypatch.setattr("colab.rehearsal.CHECKOUT", project)
    assert not uncommitted()
    [notebook] = Rehearsal(None, tmp_path / "work", tmp_path, tmp_path).notebooks
    assert notebook.read_text() == "{}"
    assert not (notebook.parents[1] / "data").exists()
    assert not (project / ".git").exists()


@pytest.fixture
def mounts(monkeypatch, tmp_path):
    """A Drive that is "mounted" without rights, and the commands that were to do it."""
    commands = []

    def run(*command):
        commands.append(command)
        if command[0] == "mount":
            (tmp_path / "drive" / "MyDrive").mkdir()
        else:
            (tmp_path / "drive" / "MyDrive").rmdir()

    monkeypatch.setenv("REHEARSAL_DRIVE", "/the/drive")
    monkeypatch.delenv("REHEARSAL_MOUNT", raising=False)
    monkeypatch.setattr(google_drive, "_run", run)
    monkeypatch.setattr(google_drive, "_mounted", [])
    return commands


def test_drive_is_mounted_once(mounts, tmp_path, capsys):
    place = str(tmp_path / "drive")
    google_drive.mount(place)
    google_drive.mount(place)
    assert mounts == [("mount", "--bind", "/the/drive", place)]
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"Mounted at {place}"
    assert second.startswith(f"Drive already mounted at {place};")


def test_drive_is_mounted_anew_by_force_and_after_it_was_unmounted(mounts, tmp_path, capsys):
    place = str(tmp_path / "drive")
    google_drive.mount(place)
    google_drive.mount(place, force_remount=True)
    google_drive.flush_and_unmount()
    google_drive.mount(place)
    assert [command[0] for command in mounts] == ["mount", "umount", "mount", "umount", "mount"]
    google_drive.flush_and_unmount()
    google_drive.flush_and_unmount()
    assert "nothing to flush" in capsys.readouterr().out


def test_drive_in_use_is_not_unmounted(mounts, tmp_path, monkeypatch):
    google_drive.mount(str(tmp_path / "drive"))

    def busy(*command):
        raise subprocess.CalledProcessError(32, command)

    monkeypatch.setattr(google_drive, "_run", busy)
    with pytest.raises(ValueError, match="flush_and_unmount failed"):
        google_drive.flush_and_unmount()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my drive", "must not contain a space"),
        ("link", "must not be a symlink"),
        ("full", "must not already contain files"),
        ("full/file", "must either be a directory or not exist"),
        ("none/drive", "must be in a directory that exists"),
    ],
)
def test_mount_points_that_the_real_one_refuses(mounts, tmp_path, name, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "link").symlink_to("full")
    with pytest.raises(ValueError, match=message):
        google_drive.mount(str(tmp_path / name))
    assert not mounts


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        ("refused", _message.MessageError, "credential propagation was unsuccessful"),
        ("timeout", ValueError, "timeout during initial read of root folder"),
    ],
)
def test_mounting_fails_on_purpose(mounts, tmp_path, monkeypatch, failure, error, message):
    monkeypatch.setenv("REHEARSAL_MOUNT", failure)
    with pytest.raises(error, match=message):
        google_drive.mount(str(tmp_path / "drive"))
    assert not (tmp_path / "drive").exists()


@pytest.mark.parametrize(
    ("failure", "advice"), [("refused", "access was not allowed"), ("timeout", "took too long")]
)
def test_agelib_says_what_to_do_when_mounting_fails(monkeypatch, tmp_path, failure, advice):
    package = ModuleType("google.colab")
    package.drive = google_drive
    monkeypatch.setitem(sys.modules, "google.colab", package)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "rehearsal")
    monkeypatch.setenv("REHEARSAL_MOUNT", failure)
    monkeypatch.setattr(disk_errors, "MOUNT_POINT", str(tmp_path / "drive"))
    with pytest.raises(AgelibError, match=advice):
        mounting.mount(Config.from_profile("sample", data=tmp_path))


def test_uploads_are_saved_under_names_that_are_free(monkeypatch, tmp_path, capsys):
    (tmp_path / "photo.jpg").write_bytes(b"new")
    (tmp_path / "machine").mkdir()
    monkeypatch.chdir(tmp_path / "machine")
    (tmp_path / "machine" / "photo.jpg").write_bytes(b"old")
    monkeypatch.setenv("REHEARSAL_UPLOADS", str(tmp_path / "photo.jpg"))
    assert files.upload() == {"photo (1).jpg": b"new"}
    assert (tmp_path / "machine" / "photo (1).jpg").read_bytes() == b"new"
    assert capsys.readouterr().out == "Saving photo.jpg to photo (1).jpg\n"


def test_nothing_is_uploaded_unless_chosen(monkeypatch):
    monkeypatch.delenv("REHEARSAL_UPLOADS", raising=False)
    assert files.upload() == {}


def test_secrets_are_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("REHEARSAL_SECRET_KEY", "value")
    assert userdata.get("KEY") == "value"
    with pytest.raises(userdata.SecretNotFoundError, match="Secret OTHER does not exist"):
        userdata.get("OTHER")


def test_there_is_no_browser():
    output.clear()
    with pytest.raises(_message.MessageError):
        output.eval_js("1 + 1")


@pytest.fixture
def shards(tmp_path):
    """A Drive that the first of two shards has reached, with its note."""
    faces = tmp_path / "faces" / "wiki"
    (faces / "parts").mkdir(parents=True)
    interruption = Shards(tmp_path)
    assert not interruption.due()
    _write_shard(faces, "train-00000")
    assert not interruption.due()
    note = {"shards": {"train-00000": {"files": [path.name for path in faces.glob("train*")]}}}
    (faces / "parts" / "train-00000.json").write_text(json.dumps(note))
    (faces / "SHA256SUMS").write_text("0  parts/train-00000.json\n0  train-00000.index.npy\n")
    assert interruption.due()
    interruption.begin_again()
    return interruption, faces


def _write_shard(faces, stem):
    (faces / f"{stem}.index.npy").write_bytes(b"index")
    (faces / f"{stem}.images.npy").write_bytes(b"images")


def _write_manifest(faces, *stems):
    manifest = {"dataset": "wiki", "shards": {stem: {"faces": 5} for stem in stems}}
    (faces / "manifest.json").write_text(json.dumps(manifest))


def test_shards_that_stay_as_they_were_pass(shards):
    interruption, faces = shards
    _write_shard(faces, "val-00000")
    _write_manifest(faces, "train-00000", "val-00000")
    text, problems = interruption.verdict()
    assert text.startswith("1 of 2 shards (5 faces) lay on Drive")
    assert not problems


def test_a_shard_that_is_written_again_fails_though_its_bytes_are_the_same(shards):
    interruption, faces = shards
    (faces / "train-00000.index.npy").rename(faces / "old")
    _write_shard(faces, "train-00000")
    _write_manifest(faces, "train-00000", "val-00000")
    _, problems = interruption.verdict()
    assert any("train-00000.index.npy was written again" in problem for problem in problems)


def test_a_kill_that_comes_too_late_fails(shards):
    interruption, faces = shards
    _write_manifest(faces, "train-00000")
    assert "killed too late" in interruption.verdict()[1][0]


@pytest.fixture
def epochs(tmp_path):
    """A Drive that three epochs have reached, and a function that writes the history there."""

    def write(*rows):
        (tmp_path / "runs" / "sample").mkdir(parents=True, exist_ok=True)
        text = "".join(f"{row}\n" for row in ("epoch,loss,best", *rows))
        (tmp_path / "runs" / "sample" / "history.csv").write_text(text)

    interruption = Epochs(tmp_path)
    assert not interruption.due()
    write("1,5,False", "2,4,True")
    assert not interruption.due()
    write("1,5,False", "2,4,False", "3,3,True")
    assert interruption.due()
    interruption.begin_again()
    return interruption, write


def test_epochs_that_go_on_pass_though_another_is_the_best(epochs):
    interruption, write = epochs
    write("1,5,False", "2,4,False", "3,3,False", "4,2,True")
    assert interruption.look() is False
    text, problems = interruption.verdict()
    assert text.startswith("3 of 4 epochs were on Drive")
    assert not problems


def test_epochs_that_begin_again_fail_though_their_losses_are_the_same(epochs):
    interruption, write = epochs
    write("1,5,True")
    interruption.look()
    write("1,5,False", "2,4,False", "3,3,False", "4,2,True")
    assert interruption.verdict()[1] == ["history.csv on Drive fell back from 3 to 1 rows"]


def test_epochs_that_change_fail(epochs):
    interruption, write = epochs
    write("1,5,False", "2,4.5,False", "3,3,False", "4,2,True")
    assert "are not those of before" in interruption.verdict()[1][0]


def test_the_exit_status_says_whether_all_passed(tmp_path, capsys):
    passed = Outcome("01_download", "clone", 12.3, added={"mtcnn": "1.0.0"})
    assert show([passed], tmp_path, 20) == 0
    assert "mtcnn 1.0.0" in capsys.readouterr().out
    assert show([passed, Outcome("02", problems=["noise"])], tmp_path, 20) == 1
    assert show([], tmp_path, 20) == 1
