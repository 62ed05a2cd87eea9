import shutil
import stat
import zipfile

import pytest
from conftest import write_zip

from agelib import AgelibError, steps
from agelib.config import Config
from agelib.datasets import download
from agelib.datasets.tables import read_table

LABELS = b"path,age,gender\na.jpg,34,female\n"
GOOD = {"faces/labels.csv": LABELS, "faces/a.jpg": b"one"}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("AGELIB_DRIVE", str(tmp_path / "drive"))
    monkeypatch.delenv("AGELIB_MIRROR", raising=False)
    return Config(profile="wiki", train_sources="wiki", test_sources="faces", data=tmp_path / "d")


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("[!.]*.*")}


# A zip file with a labels.csv


@pytest.mark.parametrize("place", ["mirror", "drive", "drive, by hand", "raw", "raw, by hand"])
def test_a_zip_file_with_labels_is_a_data_set_wherever_it_lies(
    config, tmp_path, monkeypatch, place
):
    folder = {"drive": config.drive / "archives", "raw": config.raw}.get(place.split(",")[0])
    if place == "mirror":
        folder = tmp_path / "mirror"
        monkeypatch.setenv("AGELIB_MIRROR", str(folder))
    write_zip(folder / ("faces (1).zip" if "hand" in place else "faces.zip"), GOOD)
    images = steps.download("faces", config)
    assert contents(images) == {"labels.csv": LABELS, "a.jpg": b"one"}
    assert read_table("faces", config)["age"].tolist() == [34]
    assert len(list((config.drive / "archives").glob("faces*.zip"))) == 1


@pytest.mark.parametrize("top", ["", "faces/", "My faces/", "deeper/faces/"])
def test_the_labels_may_lie_at_the_top_or_in_a_folder(config, top):
    inside = {f"{top}labels.csv": LABELS, f"{top}a.jpg": b"one"}
    write_zip(config.raw / "faces.zip", inside)
    assert contents(steps.download("faces", config)) == {"labels.csv": LABELS, "a.jpg": b"one"}


def test_a_folder_that_was_put_there_stays_as_it_is(config):
    folder = config.raw / "faces"
    folder.mkdir(parents=True)
    (folder / "labels.csv").write_bytes(LABELS)
    assert steps.download("faces", config) == folder
    write_zip(config.raw / "faces.zip", GOOD)
    assert steps.download("faces", config) == folder
    assert contents(folder) == {"labels.csv": LABELS}
    with pytest.raises(AgelibError, match=r"None of the 1 images .* \(1 missing, a\.jpg for one\)"):
        read_table("faces", config)


def test_a_zip_file_that_was_replaced_is_unpacked_anew(config):
    write_zip(config.raw / "faces.zip", GOOD)
    steps.download("faces", config)
    write_zip(config.raw / "faces.zip", GOOD | {"faces/b.jpg": b"two"})
    assert "b.jpg" in contents(steps.download("faces", config))


def test_a_zip_file_that_was_replaced_on_drive_is_not_written_over(config):
    remote = write_zip(config.drive / "archives" / "faces.zip", GOOD)
    steps.download("faces", config)
    newer = write_zip(remote, GOOD | {"faces/b.jpg": b"two"}).read_bytes()
    with pytest.raises(AgelibError, match=r"faces\.zip is no longer a copy of .*out of date"):
        steps.download("faces", config)
    assert remote.read_bytes() == newer
    (config.raw / "faces.zip").unlink()
    assert "b.jpg" in contents(steps.download("faces", config))
    assert remote.read_bytes() == newer


def test_a_new_machine_takes_the_zip_file_that_was_replaced_on_drive(config):
    remote = write_zip(config.drive / "archives" / "faces.zip", GOOD)
    steps.download("faces", config)
    shutil.rmtree(config.raw)
    write_zip(remote, GOOD | {"faces/b.jpg": b"two"})
    assert "b.jpg" in contents(steps.download("faces", config))


def test_a_set_that_nobody_has_put_there_says_where_to_put_it(config):
    with pytest.raises(AgelibError) as caught:
        steps.download("faces", config)
    text = str(caught.value)
    for part in ("faces.zip", str(config.raw), str(config.drive / "archives"), "labels.csv"):
        assert part in text
    assert "\n" not in text
    with pytest.raises(AgelibError, match=r"no images of fairface.*github\.com/joojs/fairface"):
        steps.download("fairface", config)


def test_an_empty_mirror_is_named_too(config, tmp_path, monkeypatch):
    (tmp_path / "mirror").mkdir()
    monkeypatch.setenv("AGELIB_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(AgelibError, match="no images of faces"):
        steps.download("faces", config)


@pytest.mark.parametrize(
    "name", ["../evil", "faces/../../evil", "/evil", "faces\\..\\..\\evil", "C:/evil"]
)
def test_what_would_land_outside_is_refused(config, tmp_path, name):
    write_zip(config.raw / "faces.zip", GOOD | {name: b"evil"})
    with pytest.raises(AgelibError, match=r"would lie outside, which is not safe.*: delete it"):
        download.extract("faces", config)
    assert not (config.raw / "faces").exists()
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(config, kind):
    path = write_zip(config.raw / "faces.zip", GOOD)
    with zipfile.ZipFile(path, "a") as file:
        entry = zipfile.ZipInfo("faces/link")
        entry.external_attr = (kind | 0o777) << 16
        file.writestr(entry, "/etc")
    with pytest.raises(AgelibError, match=r"would lie outside, which is not safe.*: delete it"):
        download.extract("faces", config)
    assert not (config.raw / "faces").exists()


@pytest.mark.parametrize("damage", ["cut", "changed", "no zip file"])
def test_a_damaged_zip_file_is_named(config, damage):
    path = write_zip(config.raw / "faces.zip", GOOD | {"faces/b.jpg": bytes(range(256)) * 9})
    content = path.read_bytes()
    broken = content.replace(bytes(range(256)), bytes(256), 1)
    path.write_bytes({"cut": content[:-99], "changed": broken, "no zip file": b"<html>"}[damage])
    for step in (download.fetch, download.extract):
        with pytest.raises(AgelibError, match=r"faces\.zip .*damaged") as caught:
            step("faces", config)
        assert "\n" not in str(caught.value)
    assert not (config.raw / "faces").exists()


def test_a_zip_file_without_labels_is_another_archive(config):
    write_zip(config.raw / "faces.zip", {"faces/a.jpg": b"one"})
    with pytest.raises(
        AgelibError, match=r"faces\.zip is not .*it holds faces, but no labels\.csv"
    ):
        steps.download("faces", config)


def test_the_mirrors_checksum_counts(config, tmp_path, monkeypatch):
    folder = tmp_path / "mirror"
    write_zip(folder / "faces.zip", GOOD)
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  faces.zip\n")
    monkeypatch.setenv("AGELIB_MIRROR", str(folder))
    with pytest.raises(AgelibError, match="does not have the SHA256"):
        steps.download("faces", config)
