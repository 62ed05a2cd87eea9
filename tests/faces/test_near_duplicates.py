import io
import tracemalloc

import cv2
import numpy as np
import pytest
from conftest import truth
from PIL import Image
from skimage import data

from agelib.faces import shards
from agelib.faces.near_duplicates import (
    duplicates_of_held_out,
    label_agreement,
    near_duplicates,
    thumbnails,
)
from agelib.files import write_json

PHOTO = np.ascontiguousarray(data.astronaut()[30:230, 130:330])
OTHER = np.ascontiguousarray(data.astronaut()[230:430, 130:330])


def random_thumbnails(count, rng):
    return thumbnails(rng.integers(0, 256, (count, 20, 20, 3), np.uint8))


def resized(image, size):
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def saved(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return shards.decode_jpeg(buffer.getvalue())


def copies_of(image):
    grey = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    return {
        "saved again": saved(image, 30),
        "64 pixels": resized(resized(image, 64), 200),
        "grey": grey,
        "darker": (image * 0.4).astype(np.uint8),
        "paler": (image * 0.5 + 100).astype(np.uint8),
    }


def face_set(folder, split, images):
    row = {"age": 30, "gender": 1, "race": -1, "person": 1}
    rows = [row | {"path": f"{i}.jpg"} for i in range(len(images))]
    jpegs = [shards.encode_jpeg(image) for image in images]
    files = shards.write_shard(folder, f"{split}-00000", jpegs, rows)
    crop = {"crop_size": len(images[0])}
    notes = {"format": shards.FORMAT, "crop": crop, "shards": {f"{split}-00000": {"files": files}}}
    write_json(folder / "manifest.json", notes)
    return shards.FaceSet([folder], split)


def test_a_thumbnail_has_mean_zero_and_length_one(rng):
    thumbs = random_thumbnails(5, rng)
    assert thumbs.shape == (5, 400)
    assert thumbs.dtype == np.float32
    np.testing.assert_allclose(thumbs.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(thumbs, axis=1), 1, rtol=1e-6)


def test_shards_give_the_thumbnails_of_their_faces_in_order(tmp_path):
    faces = face_set(tmp_path, "val", [PHOTO, OTHER] * 150)
    thumbs = thumbnails(faces)
    np.testing.assert_array_equal(thumbs, thumbnails(np.stack([*map(faces.image, range(300))])))
    assert (thumbs[0] == thumbs[298]).all()
    assert (thumbs[0] != thumbs[1]).any()


@pytest.mark.parametrize("kind", copies_of(PHOTO))
def test_a_copy_is_found_however_it_was_saved(kind):
    copy = copies_of(PHOTO)[kind]
    pairs = near_duplicates(thumbnails(np.stack([OTHER, PHOTO, copy])))
    assert pairs.tolist() == [[1, 2]]


def test_two_moments_are_no_duplicates():
    moved = np.roll(PHOTO, 25, axis=1)
    assert len(near_duplicates(thumbnails(np.stack([PHOTO, OTHER, moved])))) == 0


def test_blank_images_are_duplicates_of_nothing(rng):
    blank = np.full((3, 64, 64, 3), 90, np.uint8)
    noisy = blank + rng.integers(0, 2, (64, 64, 3), np.uint8)
    thumbs = thumbnails(np.concatenate([blank, noisy]))
    assert np.isfinite(thumbs).all()
    assert len(near_duplicates(thumbs)) == len(near_duplicates(thumbs, thumbs)) == 0


def test_pairs_are_those_of_the_full_matrix_of_correlations(rng):
    base = rng.standard_normal((60, 400))
    noise = rng.standard_normal((300, 400)) * rng.uniform(0, 0.5, (300, 1))
    images = base[rng.integers(0, 60, 300)] + noise
    correlation = np.corrcoef(images)
    thumbs = images - images.mean(axis=1, keepdims=True)
    thumbs = (thumbs / np.linalg.norm(thumbs, axis=1, keepdims=True)).astype(np.float32)
    for threshold in (0.9, 0.98):
        within = np.argwhere(np.triu(correlation > threshold, 1))
        between = np.argwhere(correlation[:100, 100:] > threshold)
        assert len(within) > len(between) > 10
        assert near_duplicates(thumbs, None, threshold).tolist() == within.tolist()
        found = near_duplicates(thumbs[:100], thumbs[100:], threshold)
        assert found.tolist() == between.tolist()


def test_pairs_are_found_anywhere_in_a_large_set(rng):
    thumbs = random_thumbnails(11_000, rng)
    copies = [(0, 1), (2047, 2048), (3, 8191), (4, 8192), (10_240, 10_998), (5, 10_999)]
    for first, second in copies:
        thumbs[second] = thumbs[first]
    assert sorted(map(tuple, near_duplicates(thumbs).tolist())) == sorted(copies)
    between = near_duplicates(thumbs[5000:], thumbs[:5000])
    expected = sorted((second - 5000, first) for first, second in copies if first < 5000 <= second)
    assert sorted(map(tuple, between.tolist())) == expected


def test_no_pairs_have_the_shape_of_pairs(rng):
    none = near_duplicates(random_thumbnails(3, rng), np.empty((0, 400), np.float32))
    assert none.shape == (0, 2)
    assert none.dtype == np.int64


def test_memory_does_not_grow_with_the_square_of_the_faces(rng):
    thumbs = random_thumbnails(12_000, rng)
    tracemalloc.start()
    near_duplicates(thumbs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(thumbs) ** 2 * 4 / 3


def test_train_faces_that_are_held_out_in_any_set_are_named(tmp_path):
    blank = np.full_like(PHOTO, 90)
    train = face_set(tmp_path / "1", "train", [PHOTO, OTHER, blank, PHOTO[::-1], PHOTO])
    val = face_set(tmp_path / "2", "val", [blank, OTHER[:, ::-1]])
    test = face_set(tmp_path / "3", "test", [copies_of(PHOTO)["64 pixels"]])
    assert duplicates_of_held_out(train, val, test).tolist() == [True, False, False, False, True]
    assert not duplicates_of_held_out(train, val).any()
    assert not duplicates_of_held_out(train).any()


def test_agreement_of_labels_is_that_of_the_pairs():
    faces = truth([20, 20, 30, 60], [0, 1, 0, 0])
    agreement = label_agreement(faces, np.array([[0, 1], [0, 2], [2, 3], [0, 2]]))
    assert agreement == {
        "pairs": 4,
        "age_branch": 0.25,
        "gender": 0.75,
        "age_difference": 12.5,
    }


def test_without_pairs_there_is_no_agreement():
    faces = truth([20, 30], [0, 1])
    none = np.empty((0, 2), np.int64)
    means = dict.fromkeys(["age_branch", "gender", "age_difference"])
    assert label_agreement(faces, none) == {"pairs": 0} | means
