import builtins
import errno
import hashlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from agelib import AgelibError, disk_errors, files
from agelib.drive import sync
from agelib.drive.sync import Backup, push_finished
from agelib.files import sha256

CONTENTS = {"a.npy": b"first", "b.npy": b"second", "figures/ä b.png": b"third"}
# Kills itself at a chosen moment: between two blocks of a copy, or around what makes it last.
KILLED = """
import os, signal, sys
from pathlib import Path
from agelib.drive import sync
from agelib import files

moments = iter(range(int(sys.argv[1])))

def moment():
    if next(moments, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)

def copyfile(source, target):
    with open(source, "rb") as whole, open(target, "wb", buffering=0) as copy:
        while block := whole.read(100):
            moment()
            copy.write(block)

def around(function):
    def surrounded(*arguments):
        moment()
        function(*arguments)
        moment()
    return surrounded

sync.shutil.copyfile = copyfile
files.os.fsync, files.os.replace = around(files.os.fsync), around(files.os.replace)
getattr(sync, sys.argv[2])(Path(sys.argv[3]), Path(sys.argv[4]))
print(int(sys.argv[1]) - len(list(moments)))
"""
FSYNC = os.fsync
OLDER = {"a.npy": b"older", "b.npy": b"second", "parts/1.json": b"{}"}
NEWER = OLDER | CONTENTS
ADVICE = {
    errno.EIO: "Google limits how much",
    errno.ENOSPC: "MB are free: make room",
    errno.EDQUOT: "MB are free: make room",
    errno.ENOTCONN: r"drive.mount(config) again",
}


@pytest.fixture
def local(tmp_path):
    folder = tmp_path / "local" / "faces"
    for name, content in CONTENTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def remote(tmp_path):
    return tmp_path / "drive" / "faces"


@pytest.fixture
def pushed(local, remote):
    sync.push(local, remote)
    return remote


@pytest.fixture
def fresh(tmp_path):
    """Where to pull to, as on another machine."""
    return tmp_path / "fresh" / "faces"


def contents(folder):
    """Returns name -> content of every file but the sums; hidden ones too."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def no_copying(*_):
    raise AssertionError("a file was copied")


def cut_off(source, target):
    target.write_bytes(source.read_bytes()[:3])
    raise OSError("the connection is gone")


def test_pushing_copies_everything_below_the_folder(local, remote):
    assert sync.push(local, remote) == sorted(CONTENTS)
    assert contents(remote) == CONTENTS


def test_a_second_push_copies_nothing(local, pushed, monkeypatch):
    monkeypatch.setattr(shutil, "copyfile", no_copying)
    assert sync.push(local, pushed) == []


@pytest.mark.parametrize("content", [b"FIRST", b"longer than it was"], ids=["same size", "longer"])
def test_a_changed_file_alone_is_pushed_again(local, pushed, content):
    (local / "a.npy").write_bytes(content)
    assert sync.push(local, pushed) == ["a.npy"]
    assert contents(pushed) == CONTENTS | {"a.npy": content}


def test_a_new_file_alone_is_pushed(local, pushed):
    (local / "c.npy").write_bytes(b"fourth")
    assert sync.push(local, pushed) == ["c.npy"]


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"fir")])
def test_a_copy_that_was_lost_or_cut_off_on_drive_is_pushed_again(local, pushed, spoil):
    spoil(pushed / "a.npy")
    assert sync.push(local, pushed) == ["a.npy"]
    assert contents(pushed) == CONTENTS


def test_what_the_user_uploaded_is_noted_and_not_copied(local, remote, monkeypatch):
    shutil.copytree(local, remote)
    (remote / "a.npy").write_bytes(b"FIRST")
    copied, copy = [], shutil.copyfile
    monkeypatch.setattr(shutil, "copyfile", lambda *a: copied.append(a[0].name) or copy(*a))
    assert sync.push(local, remote) == ["a.npy"]
    assert copied == ["a.npy"]
    assert contents(remote) == CONTENTS
    assert sync.push(local, remote, verify=True) == []


def test_hidden_files_stay_behind(local, remote):
    (local / ".a.npy.123.part").touch()
    (local / ".cache").mkdir()
    (local / ".cache" / "visible").touch()
    sync.push(local, remote)
    assert contents(remote) == CONTENTS


def test_a_hidden_folder_above_hides_nothing(tmp_path, remote):
    folder = tmp_path / ".hidden" / "faces"
    folder.mkdir(parents=True)
    (folder / "a.npy").write_bytes(b"first")
    assert sync.push(folder, remote) == ["a.npy"]


def test_only_some_files_can_be_pushed(local, remote):
    assert sync.push(local, remote, only=[local / "b.npy", local / "figures" / "ä b.png"]) == [
        "b.npy",
        "figures/ä b.png",
    ]
    assert set(contents(remote)) == {"b.npy", "figures/ä b.png"}


def test_pushing_only_no_files_pushes_none(local, remote):
    assert sync.push(local, remote, only=[]) == []
    assert contents(remote) == {}


def test_sums_say_what_has_arrived(pushed):
    assert (pushed / "SHA256SUMS").read_text(encoding="utf-8").splitlines() == [
        f"{sha256(pushed / name)}  {name}" for name in sorted(CONTENTS)
    ]


def test_an_older_copy_is_replaced_and_not_read_back(local, remote, monkeypatch):
    sync.push(local, remote)
    (local / "a.npy").write_bytes(CONTENTS["a.npy"][::-1])  # of the same size
    read, hash_file = [], files.hash_file
    monkeypatch.setattr(
        files, "hash_file", lambda path, *a: (read.append(path), hash_file(path, *a))[1]
    )
    assert sync.push(local, remote) == ["a.npy"]
    assert [path for path in read if path in {remote / name for name in CONTENTS}] == []
    assert (remote / "a.npy").read_bytes() == CONTENTS["a.npy"][::-1]


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="there is no sha256sum here")
def test_sums_are_what_sha256sum_reads(pushed):
    def check():
        command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
        return subprocess.run(command, cwd=pushed, capture_output=True, check=False).returncode

    assert check() == 0
    (pushed / "a.npy").write_bytes(b"FIRST")
    assert check() == 1


def test_pulling_brings_everything_to_a_fresh_machine(pushed, fresh):
    assert sync.pull(pushed, fresh) == sorted(CONTENTS)
    assert contents(fresh) == CONTENTS


def test_pulling_skips_what_is_whole(pushed, fresh, monkeypatch):
    sync.pull(pushed, fresh)
    monkeypatch.setattr(shutil, "copyfile", no_copying)
    assert sync.pull(pushed, fresh) == []


@pytest.mark.parametrize("content", [b"FIRST", b"fir", b""], ids=["flipped", "cut off", "empty"])
def test_pulling_repairs_what_is_damaged_here(pushed, fresh, content):
    sync.pull(pushed, fresh)
    (fresh / "a.npy").write_bytes(content)
    assert sync.pull(pushed, fresh) == ["a.npy"]
    assert contents(fresh) == CONTENTS


def test_pulling_leaves_other_files_alone(pushed, fresh):
    fresh.mkdir(parents=True)
    (fresh / "mine").write_bytes(b"mine")
    sync.pull(pushed, fresh)
    assert contents(fresh) == CONTENTS | {"mine": b"mine"}


@pytest.mark.parametrize("content", [b"FIRST", b"fir"], ids=["flipped", "cut off"])
def test_a_damaged_copy_on_drive_is_noticed_and_not_taken(pushed, fresh, content):
    (pushed / "a.npy").write_bytes(content)
    with pytest.raises(AgelibError, match=r"a\.npy"):
        sync.pull(pushed, fresh)
    assert "a.npy" not in contents(fresh)


def test_the_advice_for_a_damaged_copy_on_drive_works(local, pushed, fresh):
    (pushed / "a.npy").write_bytes(b"FIRST")
    with pytest.raises(AgelibError, match="if it does so again, delete it there"):
        sync.pull(pushed, fresh)
    (pushed / "a.npy").unlink()
    sync.push(local, pushed)
    sync.pull(pushed, fresh)
    assert contents(fresh) == CONTENTS


def test_a_damaged_copy_on_drive_does_not_spoil_a_whole_one_here(pushed, fresh):
    sync.pull(pushed, fresh)
    (pushed / "a.npy").write_bytes(b"fir")
    assert sync.pull(pushed, fresh) == []
    assert contents(fresh) == CONTENTS


def test_a_copy_that_was_lost_on_drive_is_named_and_the_others_are_pulled(pushed, fresh, capsys):
    lost = sorted(CONTENTS)[-1]
    (pushed / lost).unlink()
    assert sync.pull(pushed, fresh) == [name for name in sorted(CONTENTS) if name != lost]
    assert contents(fresh) == {k: v for k, v in CONTENTS.items() if k != lost}
    said = capsys.readouterr().err
    assert said == f"{pushed}: missing on Drive, so not copied: {lost}.\n"


@pytest.mark.parametrize("made", [False, True], ids=["absent", "empty"])
def test_nothing_on_drive_says_what_to_do(remote, fresh, made):
    if made:
        remote.mkdir(parents=True)
    with pytest.raises(AgelibError, match="faces holds nothing yet: run the notebook that makes"):
        sync.pull(remote, fresh)
    assert not sync.holds(remote)


def test_pushing_what_is_not_there_is_an_error(tmp_path, remote):
    with pytest.raises(AgelibError, match="nowhere is missing, so it cannot be copied"):
        sync.push(tmp_path / "nowhere", remote)


@pytest.mark.parametrize("content", [b"no sums\n", b"<html>", b"\xff\xfe\x00"])
def test_damaged_sums_are_named(pushed, fresh, content):
    (pushed / "SHA256SUMS").write_bytes(content)
    with pytest.raises(AgelibError, match="SHA256SUMS"):
        sync.pull(pushed, fresh)


def test_a_push_that_is_cut_off_leaves_no_half_file(local, remote, monkeypatch):
    monkeypatch.setattr(shutil, "copyfile", cut_off)
    with pytest.raises(AgelibError, match=r"a\.npy could not be copied .*connection is gone") as e:
        sync.push(local, remote)
    assert "\n" not in str(e.value)
    assert contents(remote) == {}


def test_a_push_goes_on_where_it_was_cut_off(local, remote, monkeypatch):
    whole = shutil.copyfile

    def copyfile(source, target):
        return (whole if source.name == "a.npy" else cut_off)(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", copyfile)
        with pytest.raises(AgelibError, match="what is done already is kept"):
            sync.push(local, remote)
    assert contents(remote) == {"a.npy": b"first"}
    assert sync.push(local, remote) == ["b.npy", "figures/ä b.png"]
    assert contents(remote) == CONTENTS


def run_killed(moment, action, source, target):
    command = [sys.executable, "-c", KILLED, str(moment), action, source, target]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def whole_folder(folder):
    """Returns name -> content of every file, whatever its name."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("action", ["push", "pull"])
def test_killed_copying_leaves_whole_files_and_can_be_completed(action, local, remote, tmp_path):
    for index in range(3):
        (local / f"train-{index}.npy").write_bytes(os.urandom(1000 + index))
    sync.push(local, remote)
    source = local if action == "push" else remote
    expected = whole_folder(remote) if action == "push" else whole_folder(local)
    moments = int(run_killed(10**6, action, source, tmp_path / "whole").stdout)
    assert whole_folder(tmp_path / "whole") == expected
    for moment in random.sample(range(moments), 5):
        target = tmp_path / str(moment)
        assert run_killed(moment, action, source, target).returncode == -signal.SIGKILL
        for name, content in contents(target).items():
            hidden = Path(name).name.startswith(".") and name.endswith(".part")
            assert hidden or content == expected[name]
        getattr(sync, action)(source, target)
        assert whole_folder(target) == expected


def test_pushing_clears_away_what_killed_pushes_left(local, remote):
    remote.mkdir(parents=True)
    for name in ("a.npy", "SHA256SUMS"):
        (remote / f".{name}.123.part").touch()
    sync.push(local, remote)
    assert contents(remote) == CONTENTS


def test_a_push_that_is_cut_off_keeps_the_older_copy(local, pushed, monkeypatch):
    (local / "a.npy").write_bytes(b"newer")
    monkeypatch.setattr(shutil, "copyfile", cut_off)
    with pytest.raises(AgelibError, match="could not be copied"):
        sync.push(local, pushed)
    assert contents(pushed) == CONTENTS


def test_a_copy_that_arrives_changed_is_not_kept(local, remote, monkeypatch):
    def change(source, target):
        target.write_bytes(source.read_bytes()[::-1])

    monkeypatch.setattr(shutil, "copyfile", change)
    with pytest.raises(AgelibError, match="differs"):
        sync.push(local, remote)
    assert contents(remote) == {}
    assert not sync.holds(remote)


def test_a_pull_that_is_cut_off_leaves_no_half_file(pushed, fresh, monkeypatch):
    monkeypatch.setattr(shutil, "copyfile", cut_off)
    with pytest.raises(AgelibError, match=r"a\.npy could not be copied .*connection is gone"):
        sync.pull(pushed, fresh)
    assert contents(fresh) == {}


def test_no_space_on_drive_is_noticed_before_copying(local, remote, monkeypatch):
    monkeypatch.setattr(disk_errors.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    monkeypatch.setattr(shutil, "copyfile", no_copying)
    with pytest.raises(AgelibError, match="are free: make room"):
        sync.push(local, remote)


def test_no_space_here_is_noticed_before_copying(pushed, fresh, monkeypatch):
    monkeypatch.setattr(disk_errors.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    monkeypatch.setattr(shutil, "copyfile", no_copying)
    with pytest.raises(AgelibError, match="are free: make room"):
        sync.pull(pushed, fresh)


def test_a_full_drive_does_not_matter_when_all_is_there(local, pushed, monkeypatch):
    monkeypatch.setattr(disk_errors.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert sync.push(local, pushed) == []


def test_single_files_travel_too(local, tmp_path):
    remote, fresh = tmp_path / "drive" / "archives", tmp_path / "fresh"
    assert sync.push(local / "a.npy", remote / "a.npy") == ["a.npy"]
    assert sync.push(local / "b.npy", remote / "b.npy") == ["b.npy"]
    assert sync.push(local / "a.npy", remote / "a.npy") == []
    assert sync.holds(remote / "a.npy")
    assert not sync.holds(remote / "c.npy")
    assert sync.pull(remote / "a.npy", fresh / "a.npy") == ["a.npy"]
    assert sync.pull(remote / "a.npy", fresh / "a.npy") == []
    assert contents(fresh) == {"a.npy": b"first"}


def test_a_single_file_may_change_its_name(local, tmp_path):
    remote, fresh = tmp_path / "drive" / "model", tmp_path / "fresh" / "best"
    sync.push(local / "a.npy", remote)
    assert remote.read_bytes() == b"first"
    sync.pull(remote, fresh)
    assert fresh.read_bytes() == b"first"


def test_a_single_file_that_is_not_on_drive_is_an_error(pushed, fresh):
    with pytest.raises(AgelibError, match="holds nothing yet"):
        sync.pull(pushed / "c.npy", fresh / "c.npy")


def test_holding_is_knowing_a_file_or_a_folder(pushed):
    assert sync.holds(pushed)
    assert sync.holds(pushed / "a.npy")
    assert not sync.holds(pushed.parent / "other")


def test_a_removed_folder_is_forgotten_with_its_sums(local, remote, fresh):
    (local / "figures2").mkdir()
    (local / "figures2" / "a.png").write_bytes(b"fourth")
    sync.push(local, remote)
    sync.remove(remote, "figures")
    rest = {"a.npy": b"first", "b.npy": b"second", "figures2/a.png": b"fourth"}
    assert contents(remote) == rest
    sync.pull(remote, fresh)
    assert contents(fresh) == rest


def test_removing_what_is_not_there_changes_nothing(pushed):
    sums = (pushed / "SHA256SUMS").read_bytes()
    sync.remove(pushed, "parts")
    assert contents(pushed) == CONTENTS
    assert (pushed / "SHA256SUMS").read_bytes() == sums


@pytest.fixture
def unmounted(colab):
    """Where Google Drive would be, on Colab, if it were mounted: holds what looks like Drive."""
    (colab.point / "MyDrive").mkdir(parents=True)
    return colab.point


ON_DRIVE = {
    "push": lambda local, remote: sync.push(local, remote),
    "pull": lambda local, remote: sync.pull(remote, local),
    "holds": lambda local, remote: sync.holds(remote),
    "remove": lambda local, remote: sync.remove(remote, "figures"),
}


@pytest.mark.parametrize("action", ON_DRIVE)
def test_on_colab_a_plain_folder_does_not_pass_for_google_drive(action, unmounted, local, pushed):
    remote = unmounted / "MyDrive" / "faces"
    shutil.copytree(pushed, remote)
    before = whole_folder(remote)
    with pytest.raises(AgelibError, match=r"is not mounted .*drive\.mount\(config\)") as caught:
        ON_DRIVE[action](local, remote)
    assert "\n" not in str(caught.value)
    assert whole_folder(remote) == before


@pytest.mark.parametrize("action", ON_DRIVE)
def test_on_colab_other_folders_need_no_mounting(action, unmounted, local, pushed):
    ON_DRIVE[action](local, pushed)
    assert sync.holds(pushed) or action == "remove"


def test_on_colab_mounted_google_drive_takes_files(unmounted, local, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(unmounted))
    remote = unmounted / "MyDrive" / "faces"
    assert sync.push(local, remote) == sorted(CONTENTS)
    assert sync.holds(remote)


def test_off_colab_a_folder_of_that_name_is_a_folder(unmounted, local, monkeypatch):
    monkeypatch.delenv("COLAB_RELEASE_TAG")
    assert sync.push(local, unmounted / "MyDrive" / "faces") == sorted(CONTENTS)


# What fails on Drive, at any moment


@pytest.fixture
def faulty(colab, monkeypatch):
    """A mounted Google Drive of which the n-th call fails, alone or with all after it."""
    return FaultyDrive(Path(disk_errors.MOUNT_POINT), monkeypatch)


class FaultyDrive:
    # Each of them takes what it works on first, but for fsync.
    CALLS = (
        (builtins, "open"),
        (io, "open"),
        *((os, name) for name in ("stat", "mkdir", "replace", "unlink", "scandir", "fsync")),
        (shutil, "copyfile"),
        (shutil, "disk_usage"),
        (hashlib, "file_digest"),
        (Path, "write_text"),
    )

    def __init__(self, point, monkeypatch):
        self.point, self.count = str(point), 0
        self.failing = lambda count: False
        self.error = 0
        monkeypatch.setattr(disk_errors.time, "sleep", lambda _: None)
        monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == self.point)
        for place, name in self.CALLS:
            monkeypatch.setattr(place, name, self._watched(getattr(place, name)))

    def _watched(self, function):
        def watched(*arguments, **options):
            names = [getattr(argument, "name", None) for argument in arguments]
            names = [*arguments, *names] if function is not FSYNC else [self.point]
            if any(str(name).startswith(self.point) for name in names):
                self.count += 1
                if self.failing(self.count):
                    raise OSError(self.error, os.strerror(self.error))
            return function(*arguments, **options)

        return watched

    def run(self, action, failing=lambda count: False, error=errno.EIO):
        """Returns the sentence with which an action gives up, or None, and the number of calls."""
        self.count, self.failing, self.error = 0, failing, error
        try:
            action()
            said = None
        except AgelibError as error:
            said = str(error)
        self.failing = lambda count: False
        return said, self.count


def fill(folder, content):
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


ACTIONS = {
    "push": lambda local, remote, fresh: sync.push(local, remote),
    "verify": lambda local, remote, fresh: sync.push(local, remote, verify=True),
    "pull": lambda local, remote, fresh: sync.pull(remote, fresh),
    "holds": lambda local, remote, fresh: sync.holds(remote),
    "remove": lambda local, remote, fresh: sync.remove(remote, "parts"),
}


def each_failure(action, faulty, tmp_path, lasting, error):
    """Yields, for each call of an action, what was said when it failed, and the folders."""
    folders = prepared(faulty, tmp_path, "whole")
    _, calls = faulty.run(lambda: ACTIONS[action](*folders))
    for moment in range(1, calls + 1):
        folders = prepared(faulty, tmp_path, str(moment))

        def failing(count, moment=moment):
            return count >= moment if lasting else count == moment

        said, _ = faulty.run(lambda folders=folders: ACTIONS[action](*folders), failing, error)
        yield said, folders


def prepared(faulty, tmp_path, name):
    local, fresh = tmp_path / name / "local", tmp_path / name / "fresh"
    remote = Path(faulty.point) / name
    fill(local, OLDER)
    sync.push(local, remote)
    fill(local, CONTENTS)
    return local, remote, fresh


@pytest.mark.parametrize("error", ADVICE, ids=errno.errorcode.get)
@pytest.mark.parametrize("action", ACTIONS)
def test_whenever_drive_fails_a_sentence_says_what_to_do(action, error, faulty, tmp_path):
    for sentence, _ in each_failure(action, faulty, tmp_path, True, error):
        assert ADVICE[error] in sentence
        assert os.strerror(error) in sentence
        assert sentence.endswith("then run this again; what is done already is kept.")
        assert "\n" not in sentence


@pytest.mark.parametrize("action", ["push", "verify", "pull"])
def test_whenever_drive_fails_nothing_is_lost_and_running_again_completes(action, faulty, tmp_path):
    for said, (local, remote, fresh) in each_failure(action, faulty, tmp_path, True, errno.ENOSPC):
        # Another machine gets the old or the new, whole.
        other = fresh.with_name("other")
        sync.pull(remote, other)
        assert set(contents(other)) >= set(OLDER)
        for name, content in contents(other).items():
            assert content in (OLDER.get(name), NEWER[name]), said
        ACTIONS[action](local, remote, fresh)
        sync.pull(remote, fresh)
        assert contents(fresh) == contents(remote) == (OLDER if action == "pull" else NEWER)


def test_whenever_drive_fails_what_was_to_be_removed_stands_in_nobody_s_way(faulty, tmp_path):
    for _, (local, remote, fresh) in each_failure("remove", faulty, tmp_path, True, errno.EIO):
        other = fresh.with_name("other")
        sync.pull(remote, other)
        kept = {name for name in OLDER if not name.startswith("parts")}
        assert set(contents(other)) >= kept
        ACTIONS["remove"](local, remote, fresh)
        assert set(contents(remote)) == kept


def test_a_removal_cut_off_at_any_moment_stands_in_nobody_s_way(tmp_path, monkeypatch):
    local, remote = tmp_path / "local", tmp_path / "drive" / "set"
    fill(local, OLDER)
    sync.push(local, remote)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as if killed before it
    sync.remove(remote, "parts")
    assert (remote / "parts").exists()
    sync.pull(remote, tmp_path / "fresh")
    assert set(contents(tmp_path / "fresh")) < set(OLDER)
    sync.remove(remote)
    assert not sync.holds(remote)


def test_a_file_lost_on_drive_is_not_missed_where_it_is_here(tmp_path):
    local, remote = tmp_path / "local", tmp_path / "drive" / "set"
    fill(local, OLDER)
    sync.push(local, remote)
    (remote / "a.npy").unlink()
    assert sync.pull(remote, local) == []
    sync.pull(remote, tmp_path / "fresh")
    assert set(contents(tmp_path / "fresh")) == set(OLDER) - {"a.npy"}


@pytest.mark.parametrize("action", ACTIONS)
def test_an_error_that_passes_is_not_mentioned(action, faulty, tmp_path):
    for said, (_, remote, fresh) in each_failure(action, faulty, tmp_path, False, errno.EIO):
        assert said is None
        sync.pull(remote, fresh)
        expected = NEWER if action in ("push", "verify") else OLDER
        assert contents(fresh) == {
            name: content
            for name, content in expected.items()
            if action != "remove" or not name.startswith("parts")
        }


def test_a_full_drive_names_what_is_missing(faulty, tmp_path, monkeypatch):
    local, remote, _ = prepared(faulty, tmp_path, "full")
    (local / "a.npy").write_bytes(bytes(3_000_000))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(AgelibError, match=r"left on device\): 3\.0 MB are needed, 1\.0 MB are"):
        sync.push(local, remote)
    assert contents(remote) == OLDER


def test_a_drive_that_fills_up_names_what_is_missing(faulty, tmp_path, monkeypatch):
    local, remote, _ = prepared(faulty, tmp_path, "full")
    copyfile = shutil.copyfile

    def fill_up(source, target):
        if source.name != "a.npy":
            raise OSError(errno.ENOSPC, "No space left on device")
        copyfile(source, target)

    (local / "b.npy").write_bytes(bytes(2_000_000))
    monkeypatch.setattr(shutil, "copyfile", fill_up)
    with pytest.raises(AgelibError, match=r"b\.npy could not be copied .* 2\.0 MB are needed"):
        sync.push(local, remote)
    assert contents(remote) == OLDER | {"a.npy": b"first"}


def test_while_a_file_is_replaced_the_sums_know_both(local, pushed, fresh, monkeypatch):
    (local / "a.npy").write_bytes(b"newer")
    atomic, written = sync.atomic, []

    def once(path):
        written.append(path.name)
        if written.count("SHA256SUMS") == 2:
            raise KeyboardInterrupt
        return atomic(path)

    with monkeypatch.context() as patch:
        patch.setattr(sync, "atomic", once)
        with pytest.raises(KeyboardInterrupt):
            sync.push(local, pushed)
    sync.pull(pushed, fresh)
    assert (fresh / "a.npy").read_bytes() == b"newer"
    assert sync.push(local, pushed) == ["a.npy"]
    assert (pushed / "SHA256SUMS").read_text(encoding="utf-8").count("a.npy") == 1


def test_off_colab_the_advice_is_not_about_google(local, remote, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(disk_errors.time, "sleep", lambda _: None)
    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(AgelibError, match="see whether the disk or its connection is at fault"):
        sync.push(local, remote)


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "local"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def trouble(monkeypatch):
    """Lets pushes fail while it says so."""
    push, state = sync.push, {"now": True}

    def failing(*arguments, **options):
        if state["now"]:
            raise AgelibError("Drive is full: make room.")
        return push(*arguments, **options)

    monkeypatch.setattr(sync, "push", failing)
    return state


def names(remote):
    return sorted(path.name for path in remote.iterdir() if path.name != "SHA256SUMS")


def test_a_backup_pushes_all_or_some(work, remote):
    Backup(work, remote).push([work / "b"])
    assert names(remote) == ["b"]
    Backup(work, remote).push()
    assert names(remote) == ["a", "b", "c"]


def test_trouble_is_told_once_and_stops_nothing(work, remote, trouble, capsys):
    backup = Backup(work, remote)
    for name in "abc":
        backup.push([work / name])
    said = capsys.readouterr().err
    assert said == (
        "agelib: not on Drive yet: Drive is full: make room. No need to stop: "
        f"{work} keeps everything, and Drive is tried again each time; this is said only once.\n"
    )


def test_what_is_pending_goes_with_the_next(work, remote, trouble):
    backup = Backup(work, remote)
    backup.push([work / "a"])
    backup.push([work / "b"])
    trouble["now"] = False
    backup.push([work / "c"])
    assert names(remote) == ["a", "b", "c"]


def test_what_was_pending_is_pushed_once(work, remote, trouble):
    backup = Backup(work, remote)
    backup.push([work / "a"])
    trouble["now"] = False
    backup.push([work / "b"])
    (remote / "a").unlink()
    backup.push([work / "c"])
    assert names(remote) == ["b", "c"]


def test_a_folder_as_a_whole_needs_no_list_of_files(work, remote, trouble):
    backup = Backup(work, remote)
    backup.push()
    trouble["now"] = False
    backup.push()
    assert names(remote) == ["a", "b", "c"]


def test_an_interruption_is_one(work, remote, monkeypatch):
    def interrupt(*_, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sync, "push", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Backup(work, remote).push()


def test_what_is_finished_is_pushed(work, remote):
    assert push_finished(work / "a", work, remote) == ["a", "b", "c"]
    (remote / "a").write_text("x")
    assert push_finished(work / "a", work, remote) == []
    assert push_finished(work / "a", work, remote, verify=True) == ["a"]


@pytest.mark.usefixtures("trouble")
def test_what_is_finished_but_not_on_drive_is_named(work, remote):
    with pytest.raises(AgelibError) as caught:
        push_finished(work / "a", work, remote)
    assert str(caught.value) == (
        f"{work / 'a'} is finished, but lies only on this machine: run this again to push it. "
        "The reason: Drive is full: make room."
    )


@pytest.mark.usefixtures("trouble", "colab")
def test_on_colab_what_is_finished_can_still_be_saved(work, remote):
    with pytest.raises(AgelibError, match="Colab wipes when it closes: run this cell again") as e:
        push_finished(work / "a", work, remote)
    assert "or download it from the Files pane" in str(e.value)
