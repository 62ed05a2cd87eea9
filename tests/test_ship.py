import json
import zipfile

import numpy as np
import pytest
from skimage import data

from agelib import AgelibError
from agelib.evaluate import estimate, metrics
from agelib.files import sha256
from agelib.model import load_model
from agelib.predict import Estimator
from agelib.shards import FaceSet, read_manifest
from agelib.ship import ship


@pytest.fixture(scope="module")
def shipped(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("shipped") / "pretrained" / "model.keras"
    return path, ship(trained, path)


def test_the_model_takes_less_space_and_says_the_same(trained, shipped):
    path, _ = shipped
    original = trained.run_folder / "model.keras"
    assert path.stat().st_size < 0.8 * original.stat().st_size
    (before, noted), (after, note) = load_model(original), load_model(path)
    assert note == noted
    faces = FaceSet([trained.faces / "utkface"], "test")
    expected, outputs = estimate(before, faces), estimate(after, faces)
    for name, values in expected.items():
        np.testing.assert_allclose(outputs[name], values, atol=2e-3)


def test_its_weights_fit_into_16_bits_and_no_file_in_it_is_lost(trained, shipped):
    path, _ = shipped
    model, _ = load_model(path)
    for weights in model.get_weights():
        np.testing.assert_array_equal(weights, weights.astype(np.float16))
    names = [zipfile.ZipFile(p).namelist() for p in (path, trained.run_folder / "model.keras")]
    assert sorted(names[0]) == sorted(names[1])
    assert [p.name for p in path.parent.iterdir() if p.suffix not in (".json", ".keras")] == []


def test_the_card_is_of_the_very_file(trained, shipped):
    path, card = shipped
    assert json.loads(path.with_name("card.json").read_text()) == card
    assert (card["sha256"], card["bytes"]) == (sha256(path), path.stat().st_size)
    assert card["images"]["wiki"] == read_manifest(trained.faces / "wiki")["counts"]
    assert card["config"] == trained.to_dict()
    faces = FaceSet([trained.faces / "utkface"], "test")
    assert card["scores"]["test"] == metrics(faces, estimate(load_model(path)[0], faces))


def test_photos_are_judged_by_it(shipped):
    path, _ = shipped
    assert len(Estimator(path).predict(data.astronaut())) == 1


def test_a_run_without_a_model_cannot_be_shipped(own_faces, tmp_path):
    with pytest.raises(AgelibError, match=r"model\.keras is missing: run the train step"):
        ship(own_faces, tmp_path / "model.keras")
    assert not (tmp_path / "model.keras").exists()
