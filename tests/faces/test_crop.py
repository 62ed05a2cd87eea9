import numpy as np
import pytest
from conftest import reason_of
from PIL import Image

from agelib.config import Crop
from agelib.datasets.sample import draw_portrait
from agelib.faces import crop as cropping
from agelib.faces import images, shards
from agelib.faces.crop import MIN_FACE, Face, choose_face, crop_face
from agelib.faces.images import read_image
from agelib.faces.shards import decode_jpeg, encode_jpeg
from agelib.model.network import build_model

RED = (255, 0, 0)
CROP = Crop(64, 0.3)


def face_at(x, y, size, confidence=0.9):
    half = size / 2
    return Face((x - half, y - half, x + half, y + half), confidence, np.zeros((5, 2)))


# Choosing


def test_the_most_central_face_wins_over_a_more_confident_one():
    central, corner = face_at(100, 100, 60, 0.85), face_at(30, 30, 60, 0.999)
    assert choose_face([corner, central], (200, 200, 3)) is central


def test_the_centre_is_that_of_a_wide_image():
    central, other = face_at(150, 50, 40), face_at(50, 50, 40)
    assert choose_face([other, central], (100, 300, 3)) is central


def test_two_alike_side_by_side_are_ambiguous():
    pair = [face_at(60, 100, 50), face_at(140, 100, 50)]
    assert reason_of(choose_face, pair, (200, 200, 3)) == "ambiguous"


def test_a_larger_face_nearly_as_central_is_ambiguous():
    pair = [face_at(100, 100, 40), face_at(120, 110, 90)]
    assert reason_of(choose_face, pair, (200, 200, 3)) == "ambiguous"


def test_a_small_face_in_the_background_is_no_rival():
    chosen = face_at(95, 100, 80)
    assert choose_face([face_at(125, 70, 40), chosen], (200, 200, 3)) is chosen


def test_an_equal_face_far_from_the_centre_is_no_rival():
    chosen = face_at(100, 100, 50)
    assert choose_face([chosen, face_at(170, 100, 50)], (200, 200, 3)) is chosen


@pytest.mark.parametrize(("size", "fits"), [(MIN_FACE, True), (MIN_FACE - 0.5, False)])
def test_a_face_below_twenty_pixels_is_too_small(size, fits):
    face = face_at(50, 50, size)
    if fits:
        assert choose_face([face], (100, 100, 3)) is face
    else:
        assert reason_of(choose_face, [face], (100, 100, 3)) == "small_face"


def test_no_face_is_a_reason():
    assert reason_of(choose_face, [], (100, 100, 3)) == "no_face"


# Cropping


@pytest.mark.parametrize(
    ("margin", "rows", "columns"),
    [
        (0, slice(30, 60), slice(35, 65)),
        (0.3, slice(21, 69), slice(26, 74)),
        (0.5, slice(15, 75), slice(20, 80)),
    ],
)
def test_the_box_is_made_square_and_widened_by_the_margin_on_each_side(rng, margin, rows, columns):
    image = rng.integers(0, 255, (100, 120, 3), np.uint8)
    tall = Face((40, 30, 60, 60), 1.0, np.zeros((5, 2)))
    expected = image[rows, columns]
    assert (crop_face(image, tall, Crop(len(expected), margin)) == expected).all()


@pytest.mark.parametrize("corner", [(0, 0), (100, 0), (0, 80), (100, 80)])
def test_beyond_the_image_its_border_is_repeated(rng, corner):
    image = rng.integers(0, 255, (80, 100, 3), np.uint8)
    padded = np.pad(image, ((50, 50), (50, 50), (0, 0)), mode="edge")
    x, y = corner
    expected = padded[y + 30 : y + 70, x + 30 : x + 70]
    assert (crop_face(image, face_at(x, y, 20), Crop(40, 0.5)) == expected).all()


@pytest.mark.parametrize("crop_size", [16, 64, 224])
@pytest.mark.parametrize("size", [3.3, 47.9, 400.0])
def test_a_crop_has_the_size_asked_for(rng, crop_size, size):
    image = rng.integers(0, 255, (80, 100, 3), np.uint8)
    crop = crop_face(image, face_at(50.4, 40.6, size), Crop(crop_size, 0.3))
    assert crop.shape == (crop_size, crop_size, 3)
    assert crop.dtype == np.uint8


def test_shrinking_averages_and_does_not_alias():
    stripes = np.zeros((200, 200, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = crop_face(stripes, face_at(100, 100, 160), Crop(40, 0))
    assert np.abs(crop.astype(int) - 127).max() <= 1


def test_a_red_file_stays_red_up_to_the_network(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (60, 60), RED).save(path)
    image = read_image(path)
    assert (image == RED).all()
    crop = crop_face(image, face_at(30, 30, 40), Crop(32, 0.3))
    assert (crop == RED).all()
    stored = shards.decode_jpeg(shards.encode_jpeg(crop))
    assert (stored[..., 0] > 240).all()
    assert (stored[..., 1:] < 15).all()
    model = build_model("EfficientNetB0", 32, augment=False)
    seen = np.asarray(model.get_layer("normalisation")(crop[None].astype(np.float32)))
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    np.testing.assert_allclose(seen, np.broadcast_to(expected, seen.shape), atol=1e-4)


# Many images


@pytest.fixture
def photos(tmp_path, rng):
    """Six files, each of its own shade of grey; the third and the last are broken."""
    paths = [tmp_path / f"{i}.jpg" for i in range(6)]
    for i, path in enumerate(paths):
        path.write_bytes(encode_jpeg(np.full((60 + 4 * i, 80, 3), 40 * i, np.uint8)))
    for i in (2, 5):
        paths[i].write_bytes(b"broken")
    return paths


@pytest.fixture
def batches(monkeypatch):
    """Puts a detector of whole images in MTCNN's place; gives the batches that it is handed."""
    seen = []

    class Whole:
        def detect(self, images):
            seen.append([image.shape[0] for image in images])
            boxes = [(10.0, 10.0, float(image.shape[0]), float(image.shape[0])) for image in images]
            return [[Face(box, 0.99, np.zeros((5, 2)))] for box in boxes]

    monkeypatch.setattr(cropping, "detector", lambda shared: Whole())
    return seen


@pytest.mark.parametrize("size", [1, 2, 4, 64])
def test_each_image_gets_its_own_result_in_order(photos, batches, monkeypatch, size):
    monkeypatch.setattr(cropping, "BATCH", size)
    results = list(cropping.crop_images(photos, CROP))
    assert [getattr(result, "reason", None) for result in results] == [
        None,
        None,
        "unreadable",
        None,
        None,
        "unreadable",
    ]
    for i in (0, 1, 3, 4):
        image = decode_jpeg(results[i])
        assert image.shape == (64, 64, 3)
        assert image.mean() == pytest.approx(40 * i, abs=2)
    assert [height for batch in batches for height in batch] == [60, 64, 72, 76]


def test_only_a_few_batches_are_in_memory_at_a_time(photos, batches, monkeypatch):
    monkeypatch.setattr(cropping, "BATCH", 1)
    read, read_image = [], images.read_image

    def remember(path, max_side):
        read.append(path)
        return read_image(path, max_side)

    monkeypatch.setattr(cropping, "read_image", remember)
    many = photos[:2] * 50
    results = cropping.crop_images(many, CROP)
    next(results)
    assert len(read) <= 2 * cropping._AHEAD + 3


def test_an_unexpected_error_is_not_taken_for_a_bad_image(photos, batches, monkeypatch):
    def fail(path, max_side):
        raise ZeroDivisionError

    monkeypatch.setattr(cropping, "read_image", fail)
    with pytest.raises(ZeroDivisionError):
        list(cropping.crop_images(photos, CROP))


def test_a_rejection_does_not_keep_its_batch_in_memory(tmp_path, batches):
    [result] = cropping.crop_images([tmp_path / "missing.jpg"], CROP)
    assert result.reason == "unreadable"
    assert result.__traceback__ is None


def test_no_images_give_no_crops(batches):
    assert list(cropping.crop_images([], CROP)) == []


@pytest.mark.parametrize("slope", [-12, 12])
def test_an_aligned_face_has_level_eyes(slope):
    image = np.zeros((200, 200, 3), np.uint8)
    eyes = np.array([[80, 100 - slope], [120, 100 + slope]])
    for channel, (x, y) in enumerate(eyes):
        image[y - 2 : y + 3, x - 2 : x + 3, channel] = 255
    face = Face((60, 60, 140, 140), 1.0, eyes.astype(float))
    for align in (False, True):
        crop = crop_face(image, face, Crop(80, 0.0, align)).astype(float)
        rows, columns = np.mgrid[:80, :80]
        left, right = (np.array([rows, columns])[:, crop[..., i] > 60].mean(axis=1) for i in (0, 1))
        assert (abs(right[0] - left[0]) < 1) == align
        assert right[1] - left[1] > 38


def test_mtcnn_finds_the_face_that_is_cropped(tmp_path, rng):
    path = tmp_path / "portrait.jpg"
    path.write_bytes(encode_jpeg(draw_portrait(30, 1, rng)))
    [jpeg] = cropping.crop_images([path], Crop(64, 0.3, align=True))
    assert decode_jpeg(jpeg).shape == (64, 64, 3)
