import dataclasses

import pandas as pd
import pytest

from agelib import AgelibError
from agelib.config import SOURCES, Config
from agelib.datasets import READERS, check_splits, images_folder, read_table


def test_every_source_has_a_reader():
    assert set(READERS) == set(SOURCES)


def test_a_set_that_is_trained_and_tested_on_has_faces_of_its_own_for_each(sample_config):
    config = dataclasses.replace(sample_config, train_sources=("wiki", "utkface"))
    assert set(read_table("wiki", config)["split"]) == {"train", "val"}
    table = read_table("utkface", config)
    shares = table["split"].value_counts(normalize=True)
    assert set(shares.index) == {"train", "val", "test"}
    assert shares["train"] > 0.6


def test_a_person_of_two_sets_is_tested_or_trained_on_in_both(sample_config, monkeypatch):
    def celebrities(folder):
        persons = [f"person {i}" for i in range(500)]
        return pd.DataFrame({"path": persons, "person": persons, "reject": ""})

    for name in ("wiki", "imdb"):
        monkeypatch.setitem(READERS, name, celebrities)
    config = dataclasses.replace(sample_config, train_sources=("wiki", "imdb"), test_source="wiki")
    wiki, imdb = (read_table(name, config)["split"] for name in config.sources)
    assert set(wiki) == {"train", "val", "test"}
    assert (wiki == imdb).all()


def test_faces_are_split_as_they_were_cleaned_for(sample_faces):
    check_splits(sample_faces.sources, sample_faces)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"val_fraction": 0.4}, "wiki"),
        ({"val_fraction": 0.1}, "wiki"),
        ({"test_source": "wiki"}, "wiki"),
        ({"train_sources": ("wiki", "utkface")}, "utkface"),
    ],
)
def test_faces_split_by_other_settings_are_refused(sample_faces, change, name):
    config = dataclasses.replace(sample_faces, **change)
    with pytest.raises(AgelibError, match=rf"{name} was split into .* by other settings"):
        check_splits([name], config)


def test_own_data_need_a_folder(tmp_path):
    config = Config.from_profile("wiki", train_sources=("own",), data=tmp_path)
    with pytest.raises(AgelibError, match="--own FOLDER"):
        images_folder("own", config)


def own_photos(folder, persons):
    folder.mkdir(exist_ok=True)
    for i in range(persons):
        (folder / f"{i}.jpg").touch()
    rows = "".join(f"{i}.jpg,30,{i % 2}\n" for i in range(persons))
    (folder / "labels.csv").write_text("path,age,gender\n" + rows)
    return Config.from_profile("own", own=folder, data=folder.parent)


def test_own_photos_are_split_in_three(tmp_path):
    table = read_table("own", own_photos(tmp_path / "own", 60))
    assert set(table["split"]) == {"train", "val", "test"}


def test_photos_of_too_few_people_are_refused(tmp_path):
    with pytest.raises(AgelibError, match=r"None of the 2 persons .* photos of more people"):
        read_table("own", own_photos(tmp_path / "own", 2))


def test_photos_on_google_drive_have_a_copy_here(tmp_path, monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    config = Config.from_profile("own", own="/content/drive/MyDrive/photos", data=tmp_path)
    assert images_folder("own", config) == tmp_path / "raw" / "own"


def test_own_data_lie_where_they_are(tmp_path):
    assert images_folder("own", Config.from_profile("own", own=tmp_path)) == tmp_path
