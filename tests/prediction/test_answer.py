import numpy as np
import pandas as pd
import pytest
from conftest import PORTRAIT
from PIL import Image

from agelib.prediction.answer import answer, as_html
from agelib.prediction.estimator import Estimator

SHOWN = ["face", "age", "80 % between", "age branch", "gender"]


@pytest.fixture(scope="module")
def estimator(tiny_model_path):
    return Estimator(tiny_model_path)


def test_a_portrait_is_answered_with_what_predict_says(estimator, photos):
    picture, table, sentence = answer(estimator, photos / "portrait.jpg")
    [estimate] = estimator.predict(photos / "portrait.jpg")
    assert list(table.columns) == SHOWN
    assert table.to_numpy().tolist() == [
        [
            1,
            str(estimate.age),
            f"{estimate.interval[0]}-{estimate.interval[1]}",
            f"{estimate.branch} ({estimate.branches.max():.0%})",
            f"{estimate.gender} ({estimate.genders.max():.0%})",
        ]
    ]
    assert sentence == "One face found."
    assert picture.shape == (640, 640, 3)
    assert picture.dtype == np.uint8


def test_faces_are_numbered_from_left_to_right(estimator, photos):
    _, table, sentence = answer(estimator, photos / "pair.png")
    left, right = estimator.predict(photos / "pair.png")
    assert left.face.box[0] < right.face.box[0]
    assert table["face"].tolist() == [1, 2]
    assert table["age"].tolist() == [str(left.age), str(right.age)]
    assert sentence == "2 faces found, numbered left to right."


def test_a_large_photo_comes_back_as_large_as_the_page_shows_it(estimator, tmp_path):
    photo = tmp_path / "large.png"
    Image.fromarray(PORTRAIT).resize((3000, 3000)).save(photo)
    picture, table, _ = answer(estimator, photo)
    assert picture.shape == (800, 800, 3)
    assert len(table) == 1


def test_a_photo_without_a_face_is_a_sentence(estimator, photos):
    picture, table, sentence = answer(estimator, photos / "wall.png")
    assert picture is None
    assert table.empty
    assert sentence.startswith("No face found: try a photo")


@pytest.mark.parametrize("name", ["cut.jpg", "missing.jpg"])
def test_what_is_no_photo_is_named_without_its_folder(estimator, photos, name):
    picture, table, sentence = answer(estimator, photos / name)
    assert picture is None
    assert table.empty
    assert sentence.startswith(f"{name} cannot be read as an image (")
    assert str(photos) not in sentence


def test_html_shows_picture_table_and_sentence(estimator, photos):
    text = as_html(*answer(estimator, photos / "pair.png"))
    assert text.count("<tr") == 3
    assert 'src="data:image/jpeg;base64,/9j/' in text
    assert "2 faces found" in text


def test_html_takes_no_file_name_for_a_tag():
    text = as_html(None, pd.DataFrame(), "<img onerror=x>.jpg cannot be read.")
    assert "<img" not in text
    assert "&lt;img onerror=x&gt;.jpg" in text
