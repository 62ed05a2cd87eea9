import dataclasses

import pandas as pd
import pytest

from agelib import AgelibError
from agelib.config import SOURCES, Config
from agelib.datasets import READERS, images_folder, read_table


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


def test_own_data_need_a_folder(tmp_path):
    config = Config.from_profile("wiki", train_sources=("own",), data=tmp_path)
    with pytest.raises(AgelibError, match="--own FOLDER"):
        images_folder("own", config)


def test_own_data_lie_where_they_are(tmp_path):
    assert images_folder("own", Config.from_profile("own", own=tmp_path)) == tmp_path
