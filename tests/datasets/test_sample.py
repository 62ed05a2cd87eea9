import io
import re
import socket
import tarfile
import time

import numpy as np
import pytest
import scipy.io
from PIL import Image

from agelib.datasets import sample
from agelib.datasets.own_photos import read_labelled
from agelib.datasets.readers import read_imdb_wiki, read_utkface
from agelib.datasets.registry import DATASETS
from agelib.datasets.sample import _portrait, draw_portrait
from agelib.datasets.tables import count_reasons
from agelib.files import sha256


@pytest.fixture
def small(monkeypatch):
    """Fewer good faces: enough where only the archives' form matters."""
    monkeypatch.setattr(sample, "N_WIKI", 4)
    monkeypatch.setattr(sample, "N_UTKFACE", 4)


@pytest.fixture
def wiki(sample_config):
    return sample_config.raw / "wiki_crop"


@pytest.fixture
def utkface(sample_config):
    return sample_config.raw / "UTKFace"


@pytest.mark.usefixtures("small")
def test_archives_are_the_same_bytes_every_time(tmp_path, monkeypatch):
    sample.make_archives(tmp_path / "a")
    # As on another day: time stamps are what usually spoils this.
    now = time.time() + 100_000
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(time, "asctime", lambda *_: time.ctime(now))
    sample.make_archives(tmp_path / "b")
    for name in ("wiki_crop.tar", "UTKFace.tar.gz", "SHA256SUMS"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.usefixtures("small")
def test_archives_that_are_there_stay_as_they_are(tmp_path):
    paths = sample.make_archives(tmp_path)
    before = [path.stat().st_mtime_ns for path in paths]
    assert sample.make_archives(tmp_path) == paths
    assert [path.stat().st_mtime_ns for path in paths] == before


@pytest.mark.parametrize("name", ["wiki_crop.tar", "UTKFace.tar.gz", "SHA256SUMS"])
@pytest.mark.usefixtures("small")
def test_what_was_deleted_is_made_anew_and_nothing_else(tmp_path, name):
    sample.make_archives(tmp_path)
    before = {path.name: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.iterdir()}
    (tmp_path / name).rename(tmp_path.with_name("deleted"))
    sample.make_archives(tmp_path)
    after = {path.name: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.iterdir()}
    assert after[name][0] == before[name][0]
    assert {changed for changed in before if after[changed] != before[changed]} == {name}


@pytest.mark.usefixtures("small")
def test_making_archives_takes_no_network(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    _portrait.cache_clear()
    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    assert all(path.exists() for path in sample.make_archives(tmp_path))


@pytest.mark.usefixtures("small")
def test_the_archives_names_and_folders_are_the_official_ones(tmp_path):
    paths = sample.make_archives(tmp_path)
    for path, name in zip(paths, ("wiki", "utkface"), strict=True):
        assert path.name == DATASETS[name].archive.file
        with tarfile.open(path) as tar:
            assert {entry.split("/")[0] for entry in tar.getnames()} == {
                DATASETS[name].archive.folder
            }


@pytest.mark.usefixtures("small")
def test_sums_name_both_archives(tmp_path):
    paths = sample.make_archives(tmp_path)
    lines = (tmp_path / "SHA256SUMS").read_text().splitlines()
    assert lines == [f"{sha256(path)}  {path.name}" for path in paths]


def test_wiki_mat_is_a_matlab_file_with_the_official_fields(wiki):
    assert (wiki / "wiki.mat").read_bytes().startswith(b"MATLAB 5.0 MAT-file")
    record = scipy.io.loadmat(wiki / "wiki.mat")["wiki"]
    assert record.shape == (1, 1)
    assert {"dob", "photo_taken", "full_path", "gender", "name", "face_location", "face_score"} <= (
        set(record.dtype.names)
    )
    rows = sample.N_WIKI + 11
    assert {record[name].item().shape for name in record.dtype.names} == {(1, rows)}


def test_wiki_mat_calls_male_1(wiki):
    official = scipy.io.loadmat(wiki / "wiki.mat", squeeze_me=True)["wiki"]["gender"].item()
    # The first rows are drawn male (with a beard) and female in turn.
    assert official[:4].tolist() == [1, 0, 1, 0]
    assert read_imdb_wiki(wiki, "wiki")["gender"][:4].tolist() == [0, 1, 0, 1]


def test_every_trouble_of_wiki_is_there(wiki):
    assert count_reasons(read_imdb_wiki(wiki, "wiki")).to_dict() == {
        "usable": sample.N_WIKI + 4,  # no face, two faces, half an image, an empty file
        "age": 2,
        "face_score": 2,
        "gender": 1,
        "second_face": 1,
        "missing": 1,
    }


def test_every_trouble_of_utkface_is_there(utkface):
    assert count_reasons(read_utkface(utkface)).to_dict() == {
        "usable": sample.N_UTKFACE + 3,  # no face, half an image, an empty file
        "name": 3,
        "age": 3,
    }


@pytest.mark.parametrize("name", ["wiki", "utkface"])
def test_a_cut_off_and_an_empty_image_are_among_the_kept(name, sample_config):
    folder = sample_config.raw / DATASETS[name].archive.folder
    table = read_utkface(folder) if name == "utkface" else read_imdb_wiki(folder, name)
    contents = [(folder / path).read_bytes() for path in table.loc[table["reject"] == "", "path"]]
    assert sum(content == b"" for content in contents) == 1
    assert sum(content != b"" and content[-2:] != b"\xff\xd9" for content in contents) == 1


def test_labels_that_were_drawn_are_the_labels_that_are_read(wiki, utkface):
    rows = list(sample.wiki_rows(np.random.default_rng(sample.SEED)))[: sample.N_WIKI]
    table = read_imdb_wiki(wiki, "wiki")[: sample.N_WIKI]
    assert table["age"].tolist() == [row.age for row in rows]
    assert table["gender"].tolist() == [row.gender for row in rows]
    assert set(table["age"]) <= set(range(1, 86))
    genders = read_utkface(utkface).query("reject == ''")["gender"].value_counts()
    assert genders.to_dict() == {0: sample.N_UTKFACE // 2, 1: sample.N_UTKFACE // 2 + 3}


def test_birth_months_lie_on_both_sides_of_the_half_year(wiki):
    paths = read_imdb_wiki(wiki, "wiki")["path"]
    months = {int(re.search(r"_-?\d+-(\d\d)-01_2010\.jpg$", path)[1]) for path in paths}
    assert min(months) <= 6 < max(months)


def test_images_are_rgb_jpegs_of_the_official_sizes(wiki, utkface):
    aligned = next(path for path in sorted(utkface.glob("[!.]*")) if path.stat().st_size)
    with Image.open(aligned) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (200, 200))
    paths = read_imdb_wiki(wiki, "wiki")["path"][:20]
    sizes = {Image.open(io.BytesIO((wiki / path).read_bytes())).size for path in paths}
    assert len(sizes) > 5


def test_a_folder_of_own_photos_has_labels_for_all_but_the_badly_named(tmp_path):
    folder = sample.make_own(tmp_path / "own")
    counts = count_reasons(read_labelled(folder)).to_dict()
    assert counts == {"usable": 145, "age": 3, "unlabelled": 1}


@pytest.mark.usefixtures("small")
def test_own_photos_that_are_there_stay_as_they_are(tmp_path):
    labels = sample.make_own(tmp_path) / "labels.csv"
    labels.write_text("mine")
    sample.make_own(tmp_path)
    assert labels.read_text() == "mine"


def test_age_and_gender_can_be_seen():
    def draw(age, gender):
        return draw_portrait(age, gender, np.random.default_rng(3)).astype(float)

    def colour(image):
        return np.ptp(image, axis=2).mean()

    assert colour(draw(80, 1)) < 0.5 * colour(draw(30, 1))
    assert np.abs(draw(30, 0) - draw(30, 1)).mean() > 2
    assert np.abs(draw(5, 1) - draw(30, 1)).mean() > 2


def test_a_portrait_depends_on_the_generator_alone(rng):
    first = draw_portrait(30, 1, np.random.default_rng(0))
    assert np.array_equal(first, draw_portrait(30, 1, rng))
    assert not np.array_equal(first, draw_portrait(30, 1, rng))
    assert (first.dtype, first.shape) == (np.uint8, (200, 200, 3))
