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

SCENE = data.astronaut()
PHOTO = np.ascontiguousarray(SCENE[30:230, 130:330])
OTHER = np.ascontiguousarray(SCENE[230:430, 130:330])


def random_thumbnails(count, rng):
    """Returns thumbnails that differ from each other."""
    tiles = rng.integers(0, 256, (count, 10, 10), np.uint8)
    return tiles.repeat(4, axis=1).repeat(4, axis=2)


def resized(image, size):
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def saved(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return shards.decode_jpeg(buffer.getvalue())


def turned(degrees):
    turn = cv2.getRotationMatrix2D((230, 130), degrees, 1)
    return cv2.warpAffine(SCENE, turn, SCENE.shape[1::-1])[30:230, 130:330]


COPIES = {
    "the same": PHOTO,
    "saved again": saved(PHOTO, 30),
    "64 pixels": resized(resized(PHOTO, 64), 200),
    "grey": np.repeat(cv2.cvtColor(PHOTO, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2),
    "darker": (PHOTO * 0.4).astype(np.uint8),
    "paler": (PHOTO * 0.5 + 100).astype(np.uint8),
    "another box": resized(SCENE[34:224, 138:328], 200),
    "a wider box": resized(SCENE[22:238, 122:338], 200),
    "turned": turned(5),
}


def face_set(folder, split, images):
    labels = {"age": 30, "age_high": 30, "gender": 1, "race": -1, "person": 1}
    rows = [labels | {"path": f"{i}.jpg"} for i in range(len(images))]
    jpegs = [shards.encode_jpeg(image) for image in images]
    files = shards.write_shard(folder, f"{split}-00000", jpegs, rows)
    crop = {"crop_size": len(images[0]), "margin": 0.0}
    notes = {"format": shards.FORMAT, "dataset": folder.name, "crop": crop, "races": []}
    notes["shards"] = {f"{split}-00000": {"files": files}}
    write_json(folder / "manifest.json", notes)
    return shards.FaceSet([folder], split)


def as_set(pairs):
    return set(map(tuple, pairs.tolist()))


def test_shards_give_the_thumbnails_of_their_faces_in_order(tmp_path):
    faces = face_set(tmp_path, "val", [PHOTO, OTHER] * 150)
    thumbs = thumbnails(faces)
    assert thumbs.shape == (300, 40, 40)
    assert thumbs.dtype == np.uint8
    np.testing.assert_array_equal(thumbs, thumbnails(np.stack([*map(faces.image, range(300))])))
    assert (thumbs[0] == thumbs[298]).all()
    assert (thumbs[0] != thumbs[1]).any()


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_found_however_it_was_made(kind):
    pairs = near_duplicates(thumbnails(np.stack([OTHER, PHOTO, COPIES[kind]])))
    assert pairs.tolist() == [[1, 2]]


def test_small_crops_are_compared_as_well():
    small = np.stack([resized(image, 16) for image in (PHOTO, OTHER, COPIES["darker"])])
    assert near_duplicates(thumbnails(small)).tolist() == [[0, 2]]


def test_another_face_in_the_same_picture_is_no_duplicate():
    height, width = PHOTO.shape[:2]
    warp = np.float32([[1, 0.25, -0.12 * width], [0, 1, 0]])
    changed = cv2.warpAffine(PHOTO, warp, (width, height), borderMode=cv2.BORDER_REPLICATE)
    changed[80:160] = changed[80:160, ::-1]
    for other in (OTHER, PHOTO[::-1], PHOTO[:, ::-1], 255 - PHOTO, changed):
        assert len(near_duplicates(thumbnails(np.stack([PHOTO, other])))) == 0


@pytest.mark.filterwarnings("error")
def test_blank_images_are_duplicates_of_nothing(rng):
    blank = np.full((3, 64, 64, 3), 90, np.uint8)
    noisy = blank + rng.integers(0, 2, (64, 64, 3), np.uint8)
    thumbs = thumbnails(np.concatenate([blank, noisy]))
    assert len(near_duplicates(thumbs)) == len(near_duplicates(thumbs, thumbs)) == 0


def test_empty_frames_are_duplicates_of_nothing():
    frame = np.pad(np.full((60, 60, 3), 200, np.uint8), ((2, 2), (2, 2), (0, 0)))
    assert len(near_duplicates(thumbnails(np.stack([frame, frame])))) == 0


def test_pairs_are_found_anywhere_in_a_large_set(rng):
    thumbs = random_thumbnails(9000, rng)
    copies = {(0, 1), (511, 512), (3, 8191), (4, 8192), (8193, 8998), (5, 8999)}
    for first, second in copies:
        thumbs[second] = thumbs[first]
    assert as_set(near_duplicates(thumbs)) == copies
    between = {(second - 8192, first) for first, second in copies if first < 8192 <= second}
    assert as_set(near_duplicates(thumbs[8192:], thumbs[:8192])) == between


def test_every_pair_of_several_copies_counts_once(rng):
    thumbs = random_thumbnails(5, rng)[[0, 1, 0, 2, 0]]
    assert as_set(near_duplicates(thumbs)) == {(0, 2), (0, 4), (2, 4)}
    assert as_set(near_duplicates(thumbs[:2], thumbs)) == {(0, 0), (0, 2), (0, 4), (1, 1)}


def test_a_photo_that_is_mixed_with_another_is_no_copy():
    faces = np.stack([PHOTO, cv2.addWeighted(PHOTO, 0.75, OTHER, 0.25, 0)])
    assert len(near_duplicates(thumbnails(faces))) == 0


def test_no_pairs_have_the_shape_of_pairs(rng):
    thumbs = random_thumbnails(3, rng)
    for none in (near_duplicates(thumbs), near_duplicates(thumbs, thumbs[:0])):
        assert none.shape == (0, 2)
        assert none.dtype == np.int64


def test_memory_does_not_grow_with_the_square_of_the_faces(rng):
    thumbs = random_thumbnails(8000, rng)
    tracemalloc.start()
    near_duplicates(thumbs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(thumbs) ** 2  # bytes: a quarter of all correlations


def test_train_faces_that_are_held_out_in_any_set_are_named(tmp_path):
    blank = np.full_like(PHOTO, 90)
    train = face_set(tmp_path / "1", "train", [PHOTO, OTHER, blank, PHOTO[::-1], PHOTO])
    val = face_set(tmp_path / "2", "val", [blank, OTHER[:, ::-1]])
    test = face_set(tmp_path / "3", "test", [COPIES["64 pixels"], COPIES["turned"]])
    assert duplicates_of_held_out(train, val, test).tolist() == [True, False, False, False, True]
    assert not duplicates_of_held_out(train, val).any()
    assert not duplicates_of_held_out(train).any()


def test_agreement_of_labels_is_that_of_the_pairs():
    faces = truth([20, 20, 30, 60], [0, 1, 0, 0])
    agreement = label_agreement(faces, np.array([[0, 1], [0, 2], [2, 3], [0, 2]]))
    assert agreement == {"pairs": 4, "age_branch": 0.25, "gender": 0.75, "age_difference": 12.5}


def test_without_pairs_there_is_no_agreement():
    none = np.empty((0, 2), np.int64)
    means = dict.fromkeys(["age_branch", "gender", "age_difference"])
    assert label_agreement(truth([20, 30], [0, 1]), none) == {"pairs": 0} | means
