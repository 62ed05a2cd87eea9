"""A few images of every kind in `mutations`, among them much that is no image, put to use."""

import csv
from collections import Counter

import mutations
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from agelib import AgelibError
from agelib.config import Config
from agelib.datasets.sample import draw_portrait
from agelib.faces import cleaning
from agelib.faces.shards import FaceSet
from agelib.prediction.estimator import Estimator
from agelib.prediction.page import predict_as_html

ROUNDS = 4
# In a test, agelib's own filters do not hold.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL.Image", "ignore:::PIL.TiffImagePlugin")


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory):
    """The mutations, and what cleaning made of them: faces, rejected path -> reason, manifest."""
    images, folder = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("faces")
    sources = _draw_portraits(tmp_path_factory.mktemp("sources"))
    count = ROUNDS * len(mutations.KINDS)
    made = list(mutations.mutate(sources, images, count, mutations.KINDS))
    # The portraits themselves as well, to compare with.
    paths = [mutation.path for mutation in made] + list(map(str, sources))
    config = Config.from_profile("sample")
    manifest = cleaning.clean_table(_table(paths), images, folder, "fuzz", config)
    faces = FaceSet([folder], "test")
    crops = {path: faces.image(i).astype(int) for i, path in enumerate(faces.paths)}
    assert len(crops) == len(faces)
    with open(folder / "rejected.csv", newline="") as file:
        rejected = [(row["path"], row["reason"]) for row in csv.DictReader(file)]
    return made, paths, crops, rejected, manifest


def _draw_portraits(folder):
    rng = np.random.default_rng(0)
    sources = [folder / f"{i}.png" for i in range(5)]
    for i, path in enumerate(sources):
        Image.fromarray(draw_portrait(20 + 10 * i, i % 2, rng)).save(path)
    return sources


def _table(paths):
    labels = {"age": 30, "gender": 1, "race": pd.NA, "person": "", "reject": "", "split": "test"}
    return pd.DataFrame({"path": paths}).assign(**labels)


def test_every_path_is_either_kept_or_rejected_once(cleaned):
    _, paths, crops, rejected, _ = cleaned
    assert sorted([*crops, *(path for path, _ in rejected)]) == sorted(paths)


def test_the_manifest_counts_every_image(cleaned):
    _, paths, crops, rejected, manifest = cleaned
    assert manifest["rows"] == len(paths)
    reasons = Counter(reason for _, reason in rejected)
    assert manifest["counts"] == {"kept": len(crops), **reasons}


@pytest.mark.parametrize("kind", mutations.FAITHFUL)
def test_a_face_is_kept_in_its_colours_whatever_the_format(cleaned, kind):
    made, _, crops, _, _ = cleaned
    for mutation in made:
        if mutation.kind == kind:
            expected = crops[str(mutation.source)]
            if kind.startswith("grey"):
                luma = np.array([299, 587, 114]) / 1000
                expected = np.repeat((expected @ luma)[..., None], 3, axis=2)
            difference = crops[mutation.path] - expected
            # A loss of quality may move the box a little; inverted or black faces differ by 100.
            assert np.abs(difference).mean() < 40
            assert np.abs(difference.mean(axis=(0, 1))).max() < 15


@pytest.mark.parametrize("kind", [*mutations.HOPELESS, *mutations.PLACES])
def test_what_is_no_image_is_unreadable(cleaned, kind):
    made, _, _, rejected, _ = cleaned
    reasons = dict(rejected)
    assert {reasons[mutation.path] for mutation in made if mutation.kind == kind} == {"unreadable"}


@pytest.mark.parametrize("kind", ["1 x 1", "20,000 x 1", "1 x 20,000", "transparent png"])
def test_an_image_without_a_face_is_rejected_for_that(cleaned, kind):
    made, _, _, rejected, _ = cleaned
    reasons = dict(rejected)
    assert {reasons[mutation.path] for mutation in made if mutation.kind == kind} == {"no_face"}


def test_mutations_are_the_same_every_time(cleaned, tmp_path):
    made, _, _, _, _ = cleaned
    sources = sorted({mutation.source for mutation in made})
    kinds, contents = ["flipped jpeg", "cut png", "noise", "broken exif in PNG"], []
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        paths = [mutation.path for mutation in mutations.mutate(sources, folder, 20, kinds)]
        contents.append([(path, (folder / path).read_bytes()) for path in paths])
    assert contents[0] == contents[1]


@pytest.mark.slow
def test_whatever_is_put_on_the_page_is_answered_as_predict_does_with_a_sentence(tmp_path):
    estimator = Estimator()
    (tmp_path / "images").mkdir()
    sources = _draw_portraits(tmp_path)
    kinds = mutations.KINDS
    for mutation in mutations.mutate(sources, tmp_path / "images", len(kinds), kinds, seed=1):
        path = tmp_path / "images" / mutation.path
        try:
            count = len(estimator.predict(path))
        except AgelibError:
            count = None
        text = predict_as_html(estimator, path)
        assert text.count("<li>") == (count or 0), mutation.kind
        assert ("<img" in text) == bool(count)
        assert ("cannot be read as an image" in text) == (count is None)
        assert "\n" not in text
        assert str(tmp_path) not in text
