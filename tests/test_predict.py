import dataclasses
import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import build_tiny_model
from PIL import Image
from skimage import data

from agelib import AgelibError
from agelib.backend import keras
from agelib.evaluate import probabilities
from agelib.faces import Face, crop_face
from agelib.labels import AGE_BRANCHES
from agelib.model import save_model
from agelib.pipeline import ordered_batches
from agelib.predict import PHOTO_CANVAS, Estimator, find_photos, name_pictures
from agelib.shards import FaceSet

ASTRONAUT_BOX = (182, 64, 265, 171)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    keras.utils.set_random_seed(4)
    path = tmp_path_factory.mktemp("model") / "model.keras"
    note = {"crop": {"crop_size": 64, "margin": 0.3}}
    save_model(build_tiny_model("EfficientNetB0", 64), path, note)
    return path


@pytest.fixture(scope="module")
def estimator(model_path):
    return Estimator(model_path)


@pytest.fixture
def seen(estimator, monkeypatch):
    """The batches of crops that the model is shown, each followed by its mirror image."""
    batches = []
    predict = estimator.model.predict_on_batch

    def remember(crops):
        batches.append(crops)
        return predict(crops)

    monkeypatch.setattr(estimator.model, "predict_on_batch", remember)
    return batches


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    Image.fromarray(data.astronaut()).save(path)
    return path


def same(estimates, others):
    return [e.to_dict() for e in estimates] == [e.to_dict() for e in others]


# One photo


def test_the_astronaut_is_one_face_at_the_right_place(estimator, photo):
    [estimate] = estimator.predict(photo)
    np.testing.assert_allclose(estimate.face.box, ASTRONAUT_BOX, atol=9)
    assert estimate.ages.shape == (85,)
    assert estimate.age == pytest.approx(float(estimate.ages @ np.arange(1, 86)), abs=1e-3)
    assert 1 <= estimate.age <= 85
    np.testing.assert_allclose(estimate.branches.sum(), 1, atol=1e-5)
    np.testing.assert_allclose(estimate.genders.sum(), 1, atol=1e-5)


def test_the_names_are_those_of_the_most_probable_classes(estimator, photo):
    [estimate] = estimator.predict(photo)
    low, high = AGE_BRANCHES[int(estimate.branches.argmax())]
    assert estimate.branch == f"{low}-{high}"
    assert estimate.gender == ("Male", "Female")[int(estimate.genders.argmax())]
    old = dataclasses.replace(
        estimate, branches=np.array([0, 0, 0, 0.1, 0.9]), genders=np.array([0.2, 0.8])
    )
    assert (old.branch, old.gender) == ("56-85", "Female")


def test_an_estimate_is_json(estimator, photo):
    [estimate] = estimator.predict(photo)
    content = estimate.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert set(content) == {
        "box",
        "confidence",
        "age",
        "age_branch",
        "age_branch_probabilities",
        "gender",
        "gender_probabilities",
    }
    assert list(content["gender_probabilities"]) == ["Male", "Female"]
    assert sum(content["age_branch_probabilities"].values()) == pytest.approx(1, abs=1e-3)


def test_path_bytes_and_array_give_the_same(estimator, photo):
    expected = estimator.predict(photo)
    assert len(expected) == 1
    assert same(estimator.predict(str(photo)), expected)
    assert same(estimator.predict(photo.read_bytes()), expected)
    assert same(estimator.predict(data.astronaut()), expected)


def test_the_model_is_shown_the_crop_that_training_makes(estimator, seen, photo):
    [estimate] = estimator.predict(photo)
    crops, _ = seen
    expected = crop_face(data.astronaut(), estimate.face, 64, 0.3)
    np.testing.assert_array_equal(crops, expected[None])


def test_two_faces_are_told_from_left_to_right(estimator, seen):
    # Darker on the right, so that the crops can be told apart.
    astronaut = data.astronaut()
    estimates = estimator.predict(np.hstack([astronaut, astronaut // 2]))
    assert len(estimates) == 2
    for offset, estimate in zip((0, 512), estimates, strict=True):
        box = np.add(ASTRONAUT_BOX, (offset, 0, offset, 0))
        np.testing.assert_allclose(estimate.face.box, box, atol=15)
    crops, _ = seen
    assert crops[0].mean() > 1.5 * crops[1].mean()
    alone = probabilities(estimator.model, crops[1:])
    np.testing.assert_allclose(estimates[1].ages, alone["age"][0], atol=1e-5)


def test_a_photo_without_a_face_gives_no_estimates(estimator, seen):
    assert estimator.predict(np.full((300, 400, 3), 120, np.uint8)) == []
    assert estimator.predict(np.zeros((1, 1, 3), np.uint8)) == []
    assert seen == []


def test_a_thumbnail_of_sixty_pixels_is_enough(estimator):
    head = data.astronaut()[:320, 60:380]
    [estimate] = estimator.predict(cv2.resize(head, (60, 60), interpolation=cv2.INTER_AREA))
    expected = np.subtract(ASTRONAUT_BOX, (60, 0, 60, 0)) * 60 / 320
    np.testing.assert_allclose(estimate.face.box, expected, atol=4)


def test_the_box_in_a_huge_photo_is_in_its_own_pixels(estimator):
    photo = np.full((3000, 4000, 3), 60, np.uint8)
    photo[400:1936, 1200:2736] = cv2.resize(data.astronaut(), None, fx=3, fy=3)
    [estimate] = estimator.predict(photo)
    expected = np.add(np.multiply(ASTRONAUT_BOX, 3), (1200, 400, 1200, 400))
    np.testing.assert_allclose(estimate.face.box, expected, atol=40)


def test_a_photo_on_its_side_is_turned_before_its_faces_are_sought(estimator, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "side.jpg"
    Image.fromarray(np.rot90(data.astronaut()).copy()).save(path, exif=exif, quality=95)
    [estimate] = estimator.predict(path)
    np.testing.assert_allclose(estimate.face.box, ASTRONAUT_BOX, atol=12)


def test_photos_of_many_sizes_need_few_canvases(estimator, monkeypatch):
    # Each canvas size is compiled on its own, which takes longer than the photo.
    canvases = set()

    def remember(images, canvas_size):
        canvases.add(canvas_size)
        return [[] for _ in images]

    monkeypatch.setattr(estimator._detector, "detect", remember)
    for side in range(40, 2000, 17):
        estimator.predict(np.zeros((side, side // 2, 3), np.uint8))
    assert max(canvases) == PHOTO_CANVAS
    assert len(canvases) <= 8


def test_a_model_that_sees_another_size_gets_its_crops_resized(tiny_networks, tmp_path, photo):
    path = tmp_path / "model.keras"
    save_model(tiny_networks("B0", 48), path, {"crop": {"crop_size": 64, "margin": 0.3}})
    [estimate] = Estimator(path).predict(photo)
    np.testing.assert_allclose(estimate.face.box, ASTRONAUT_BOX, atol=9)


@pytest.mark.parametrize("image_size", [48, 96])
def test_crops_are_resized_as_in_training(
    tiny_networks, tmp_path, monkeypatch, sample_faces, image_size
):
    faces = FaceSet([sample_faces.faces / "wiki"], "val")
    expected = next(iter(ordered_batches(faces, 8, image_size)))[0].numpy().astype(int)
    path = tmp_path / "model.keras"
    crop = {"crop_size": 64, "margin": 0.3}
    save_model(tiny_networks("B0", image_size), path, {"crop": crop})
    estimator = Estimator(path)
    crops = iter([faces.image(i) for i in range(8)])
    monkeypatch.setattr("agelib.predict.crop_face", lambda *arguments, **options: next(crops))
    shown = []
    predict = estimator.model.predict_on_batch
    monkeypatch.setattr(
        estimator.model, "predict_on_batch", lambda batch: shown.append(batch) or predict(batch)
    )
    face = Face((0, 0, 9, 9), 1.0, np.zeros((5, 2)))
    estimator._judge(np.zeros((9, 9, 3), np.uint8), [face] * 8)
    difference = np.abs(shown[0].astype(int) - expected)
    assert difference.mean() < 1.5


# What cannot be used


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe0 half a photo"])
def test_a_broken_file_is_one_sentence(estimator, tmp_path, content):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(AgelibError, match=r"broken\.jpg cannot be read as an image"):
        estimator.predict(path)
    with pytest.raises(AgelibError, match="the image cannot be read"):
        estimator.predict(content)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((9, 9, 3), np.float32),
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((1, 9, 9, 3), np.uint8),
        np.zeros((0, 9, 3), np.uint8),
    ],
    ids=["float", "grey", "RGBA", "batch", "empty"],
)
def test_an_array_of_another_form_is_one_sentence(estimator, array):
    with pytest.raises(AgelibError) as caught:
        estimator.predict(array)
    text = str(caught.value)
    assert f"is {array.dtype} of shape {array.shape}, but must be RGB uint8" in text
    assert "\n" not in text


def test_a_missing_model_is_asked_for(tmp_path):
    with pytest.raises(AgelibError, match=r"model\.keras is missing"):
        Estimator(tmp_path / "model.keras")


def test_a_keras_model_that_is_not_ours_is_refused(tiny_networks, tmp_path):
    tiny_networks("B0", 64).save(tmp_path / "foreign.keras")
    with pytest.raises(AgelibError, match=r"foreign\.keras is no model of agelib's"):
        Estimator(tmp_path / "foreign.keras")


# Finding photos


@pytest.fixture
def album(tmp_path):
    for name in ("b.JPG", "a.png", "deep/er/c.webp", "notes.txt", "deep/d.jpeg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


def test_photos_are_found_at_any_depth_in_a_steady_order(album):
    found = [path.relative_to(album).as_posix() for path in find_photos([album])]
    assert found == ["a.png", "b.JPG", "deep/d.jpeg", "deep/er/c.webp"]


def test_a_file_named_by_hand_is_taken_whatever_its_name(album):
    places = [album / "notes.txt", album / "deep", str(album / "b.JPG")]
    found = [path.name for path in find_photos(places)]
    assert found == ["notes.txt", "d.jpeg", "c.webp", "b.JPG"]


def test_pictures_that_an_earlier_call_drew_are_no_photos(album):
    photos = find_photos([album])
    drawn = album / "a.estimates.png"
    drawn.touch()
    assert find_photos([album]) == photos
    assert find_photos([drawn]) == [drawn]


def test_a_picture_is_named_after_its_photo():
    assert name_pictures([Path("x/a.jpg"), Path("b.c.png")]) == [
        "a.estimates.png",
        "b.c.estimates.png",
    ]


def test_no_two_photos_share_a_picture():
    photos = [Path(name) for name in ("a.jpg", "a.png", "a-2.jpg", "x/a.jpg", "A.jpg", "a-2.png")]
    for order in itertools.permutations(photos):
        names = name_pictures(order)
        assert len({name.lower() for name in names}) == len(photos)


def test_a_folder_named_like_a_photo_is_no_photo(album):
    (album / "album.jpg").mkdir()
    (album / "album.jpg" / "inside.jpg").write_bytes(b"")
    found = [path.relative_to(album).as_posix() for path in find_photos([album])]
    assert "album.jpg" not in found
    assert "album.jpg/inside.jpg" in found


def test_a_place_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(AgelibError, match=r"missing\.jpg does not exist"):
        find_photos([tmp_path / "missing.jpg"])


def test_a_folder_without_a_photo_is_named(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(AgelibError, match=r"holds no photo \(\.jpg, "):
        find_photos([tmp_path])
