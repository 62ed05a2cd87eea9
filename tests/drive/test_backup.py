import pytest

from agelib import AgelibError
from agelib.drive import sync
from agelib.drive.backup import Backup, push_finished


@pytest.fixture
def local(tmp_path):
    folder = tmp_path / "local"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def remote(tmp_path):
    return tmp_path / "drive" / "faces"


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


def test_a_backup_pushes_all_or_some(local, remote):
    Backup(local, remote).push([local / "b"])
    assert names(remote) == ["b"]
    Backup(local, remote).push()
    assert names(remote) == ["a", "b", "c"]


def test_trouble_is_told_once_and_stops_nothing(local, remote, trouble, capsys):
    backup = Backup(local, remote)
    for name in "abc":
        backup.push([local / name])
    said = capsys.readouterr().err
    assert said == (
        "agelib: not on Drive yet: Drive is full: make room. No need to stop: work goes on, "
        f"{local} keeps everything, and Drive is tried again each time; this is said only once.\n"
    )


def test_what_is_owed_goes_with_the_next(local, remote, trouble):
    backup = Backup(local, remote)
    backup.push([local / "a"])
    backup.push([local / "b"])
    trouble["now"] = False
    backup.push([local / "c"])
    assert names(remote) == ["a", "b", "c"]


def test_what_was_owed_is_paid_once(local, remote, trouble):
    backup = Backup(local, remote)
    backup.push([local / "a"])
    trouble["now"] = False
    backup.push([local / "b"])
    (remote / "a").unlink()
    backup.push([local / "c"])
    assert names(remote) == ["b", "c"]


def test_a_folder_as_a_whole_needs_no_list_of_debts(local, remote, trouble):
    backup = Backup(local, remote)
    backup.push()
    trouble["now"] = False
    backup.push()
    assert names(remote) == ["a", "b", "c"]


def test_an_interruption_is_one(local, remote, monkeypatch):
    def interrupt(*_, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sync, "push", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Backup(local, remote).push()


def test_what_is_finished_is_pushed(local, remote):
    assert push_finished(local / "a", local, remote) == ["a", "b", "c"]
    (remote / "a").write_text("x")
    assert push_finished(local / "a", local, remote) == []
    assert push_finished(local / "a", local, remote, verify=True) == ["a"]


@pytest.mark.usefixtures("trouble")
def test_what_is_finished_but_not_on_drive_is_named(local, remote):
    with pytest.raises(AgelibError) as caught:
        push_finished(local / "a", local, remote)
    assert str(caught.value) == (
        f"{local / 'a'} is finished, but lies on this machine alone: run this again to push it. "
        "The reason: Drive is full: make room."
    )


@pytest.mark.usefixtures("trouble", "colab")
def test_on_colab_what_is_finished_can_still_be_saved(local, remote):
    with pytest.raises(AgelibError, match="Colab wipes when it closes: run this cell again") as e:
        push_finished(local / "a", local, remote)
    assert "or download it from the Files pane" in str(e.value)
