import dataclasses
import json

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

from agelib import AgelibError
from agelib.config import Crop
from agelib.faces.crop import Face, crop_face
from agelib.faces.detector import FaceDetector
from agelib.faces.shards import FaceSet
from agelib.labels import AGE_BRANCHES
from agelib.model.inference import inference_graph, probabilities
from agelib.model.saved import save_model
from agelib.prediction import estimator as predict
from agelib.prediction.detection import PHOTO_CANVAS, Found
from agelib.prediction.estimator import Estimator
from agelib.prediction.photos import Photo, read_photos
from agelib.training.batches import ordered_batches

ASTRONAUT_BOX = (182, 64, 265, 171)


@pytest.fixture(scope="module")
def estimator(tiny_model_path):
    return Estimator(tiny_model_path)


@pytest.fixture
def seen(monkeypatch):
    """The batches of crops that a model is shown."""
    batches = []

    def remember(graph, crops):
        batches.append(crops)
        return probabilities(graph, crops)

    monkeypatch.setattr(predict, "probabilities", remember)
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
    assert isinstance(estimate.age, int)
    younger, older = estimate.ages[: estimate.age - 1], estimate.ages[estimate.age :]
    assert max(younger.sum(), older.sum()) <= 0.5 + 1e-5
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
        "age_low",
        "age_high",
        "age_branch",
        "age_branch_probability",
        "age_branch_probabilities",
        "gender",
        "gender_probability",
        "gender_probabilities",
        "quality",
        "rotated",
    }
    assert list(content["gender_probabilities"]) == ["Male", "Female"]
    assert sum(content["age_branch_probabilities"].values()) == pytest.approx(1, abs=1e-3)


def test_a_box_is_whole_pixels_inside_the_photo(estimator):
    photo = data.astronaut()[90:, 190:]  # which cuts off the face's left and upper sides
    [estimate] = estimator.predict(photo)
    left, top, right, bottom = estimate.box
    assert all(type(value) is int for value in estimate.box)
    assert 0 <= left < right <= photo.shape[1]
    assert 0 <= top < bottom <= photo.shape[0]


def test_path_bytes_and_array_give_the_same(estimator, photo):
    expected = estimator.predict(photo)
    assert len(expected) == 1
    assert same(estimator.predict(str(photo)), expected)
    assert same(estimator.predict(photo.read_bytes()), expected)
    assert same(estimator.predict(data.astronaut()), expected)
    assert same(estimator.predict(Image.open(photo)), expected)


def test_the_interval_is_the_middle_of_the_distribution(estimator, photo):
    [estimate] = estimator.predict(photo)
    low, high = estimate.interval
    assert estimate.ages[: low - 1].sum() < 0.1 <= estimate.ages[:low].sum()
    assert estimate.ages[: high - 1].sum() < 0.9 <= estimate.ages[:high].sum() + 1e-6


def test_the_model_is_shown_the_crop_that_training_makes(estimator, seen, photo):
    [estimate] = estimator.predict(photo)
    [crops] = seen
    expected = crop_face(data.astronaut(), estimate.face, Crop(64, 0.3))
    np.testing.assert_array_equal(crops, expected[None])


def test_two_faces_are_told_from_left_to_right(estimator, seen):
    # Darker on the right, so that the crops can be told apart.
    astronaut = data.astronaut()
    estimates = estimator.predict(np.hstack([astronaut, astronaut // 2]))
    assert len(estimates) == 2
    for offset, estimate in zip((0, 512), estimates, strict=True):
        box = np.add(ASTRONAUT_BOX, (offset, 0, offset, 0))
        np.testing.assert_allclose(estimate.face.box, box, atol=15)
    [crops] = seen
    assert crops[0].mean() > 1.5 * crops[1].mean()
    alone = probabilities(inference_graph(estimator.model), crops[1:])
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


@pytest.mark.parametrize("rotated", [90, 180, 270])
def test_a_photo_that_lies_is_turned_and_it_is_said(estimator, seen, rotated):
    upright = data.astronaut()
    photo = np.rot90(upright, rotated // 90)  # which a turn clockwise makes good
    [estimate] = estimator.predict(photo)
    assert estimate.rotated == rotated
    assert str(estimate).endswith(f", photo turned by {rotated} degrees")
    assert estimate.to_row()["rotated"] == rotated
    eyes = estimate.face.landmarks[:2].mean(axis=0)
    assert np.linalg.norm(eyes - turned_point((224, 104), rotated)) < 15
    left, top, right, bottom = estimate.box
    assert left < eyes[0] < right
    assert top < eyes[1] < bottom
    [[crop]] = seen
    [as_it_is] = estimator.predict(upright)
    assert as_it_is.rotated == 0
    assert "turned" not in str(as_it_is)
    # The model saw an upright face: the two crops are of nearly the same place.
    assert np.corrcoef(crop.ravel(), seen[1][0].ravel())[0, 1] > 0.8


def turned_point(point, degrees):
    """Returns where a point of the astronaut is once it was turned counter-clockwise."""
    x, y = point
    return {90: (y, 512 - x), 180: (512 - x, 512 - y), 270: (512 - y, x)}[degrees]


def test_the_model_is_traced_before_the_first_photo_and_never_again(tiny_model_path):
    estimator = Estimator(tiny_model_path)
    traces = []
    call = estimator.model.call
    estimator.model.call = lambda *arguments, **options: (
        traces.append(1) or call(*arguments, **options)
    )
    astronaut = data.astronaut()
    for count in (1, 3, 2, 1):
        assert len(estimator.predict(np.hstack([astronaut] * count))) == count
    assert traces == []


def test_photos_of_many_sizes_need_few_canvases(estimator, monkeypatch):
    # Each canvas size is compiled on its own, which takes longer than the photo.
    canvases = set()

    def remember(_, images, canvas_size, turns=0):
        canvases.add(canvas_size)
        return [[] for _ in images]

    monkeypatch.setattr(FaceDetector, "detect_in_photos", remember)
    for side in range(40, 2000, 17):
        estimator.predict(np.zeros((side, side // 2, 3), np.uint8))
    assert max(canvases) == 2 * PHOTO_CANVAS
    assert len(canvases) <= 8


def test_a_model_that_sees_another_size_gets_its_crops_resized(tiny_networks, tmp_path, photo):
    path = tmp_path / "model.keras"
    save_model(tiny_networks("B0", 48), path, {"crop": {"crop_size": 64, "margin": 0.3}})
    [estimate] = Estimator(path).predict(photo)
    np.testing.assert_allclose(estimate.face.box, ASTRONAUT_BOX, atol=9)


@pytest.mark.parametrize("image_size", [48, 96])
def test_crops_are_resized_as_in_training(
    tiny_networks, tmp_path, monkeypatch, seen, sample_faces, image_size
):
    faces = FaceSet([sample_faces.faces / "wiki"], "val")
    expected = next(iter(ordered_batches(faces, 8, image_size)))[0].numpy().astype(int)
    path = tmp_path / "model.keras"
    crop = {"crop_size": 64, "margin": 0.3}
    save_model(tiny_networks("B0", image_size), path, {"crop": crop})
    estimator = Estimator(path)
    crops = iter([faces.image(i) for i in range(8)])
    monkeypatch.setattr(
        "agelib.prediction.estimator.crop_face", lambda *arguments, **options: next(crops)
    )
    found = Found(Face((0, 0, 9, 9), 1.0, np.zeros((5, 2))), 0, False)
    monkeypatch.setattr(predict, "find_faces", lambda *_: [[found] * 8])
    estimator.predict(np.zeros((9, 9, 3), np.uint8))
    difference = np.abs(seen[0].astype(int) - expected)
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


def test_a_phones_photo_is_upright_however_it_is_handed_over(estimator, tmp_path):
    path = tmp_path / "phone.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    Image.fromarray(np.rot90(data.astronaut())).save(path, exif=exif, quality=95)
    assert len(estimator.predict(path)) == 1
    with Image.open(path) as image:
        assert same(estimator.predict(image), estimator.predict(path))
        assert image.getexif()[0x0112] == 6  # the caller's is left as it was


# Many photos


def test_many_photos_are_judged_as_each_alone(estimator, photo, monkeypatch):
    names = [photo, photo.parent / "gone.png", photo, photo]
    alone = estimator.predict(photo)
    for most in (0, 10**9):
        monkeypatch.setattr(predict, "_BATCH_BYTES", most)
        judged = list(estimator.predict_all(read_photos(names)))
        assert [each.name for each, _ in judged] == [str(name) for name in names]
        assert judged[1][1] == []
        assert "cannot be read" in judged[1][0].error
        for i in (0, 2, 3):
            np.testing.assert_allclose(judged[i][1][0].ages, alone[0].ages, atol=1e-5)


def test_many_photos_are_read_as_they_are_needed(estimator, photo, monkeypatch):
    monkeypatch.setattr(predict, "_BATCH_BYTES", 10**6)
    read = []

    def photos():
        for i in range(20):
            read.append(i)
            yield Photo(str(i), data.astronaut())

    judged = estimator.predict_all(photos())
    next(judged)
    assert len(read) < 8  # of two each, one is answered, one judged and one read
    assert len(list(judged)) == 19


def test_faces_stay_with_their_photo(estimator):
    astronaut = data.astronaut()
    wall = np.full((200, 300, 3), 90, np.uint8)
    two = np.hstack([astronaut, astronaut])
    photos = [Photo(name, image) for name, image in (("a", astronaut), ("b", wall), ("c", two))]
    assert [len(faces) for _, faces in estimator.predict_all(photos)] == [1, 0, 2]
