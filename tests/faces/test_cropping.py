import numpy as np
import pytest

from agelib.config import Crop
from agelib.datasets.sample import draw_portrait
from agelib.faces import cropping, images
from agelib.faces.crop import Face
from agelib.faces.shards import decode_jpeg, encode_jpeg

CROP = Crop(64, 0.3)


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


def test_mtcnn_finds_the_face_that_is_cropped(tmp_path, rng):
    path = tmp_path / "portrait.jpg"
    path.write_bytes(encode_jpeg(draw_portrait(30, 1, rng)))
    [jpeg] = cropping.crop_images([path], Crop(64, 0.3, align=True))
    assert decode_jpeg(jpeg).shape == (64, 64, 3)
