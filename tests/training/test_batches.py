import cv2
import numpy as np
import pytest

from agelib.datasets.tables import read_table
from agelib.faces.cleaning import clean_table
from agelib.faces.shards import FaceSet
from agelib.labels import age_branch
from agelib.training.batches import ordered_batches, train_batches

BATCH = 16


@pytest.fixture(scope="module")
def train_faces(sample_faces):
    return FaceSet([sample_faces.faces / "wiki"], "train")


@pytest.fixture
def even(train_faces):
    """Weights that show every face equally often."""
    return np.ones(len(train_faces))


@pytest.fixture(scope="module")
def val_faces(sample_faces):
    return FaceSet([sample_faces.faces / "wiki"], "val")


@pytest.fixture(scope="module")
def numbers(train_faces):
    """Finds the numbers of the faces that a batch of images shows."""
    known = thumbnails(np.stack([train_faces.image(i) for i in range(len(train_faces))]))

    def find(images):
        distances = np.abs(thumbnails(images)[:, None] - known).mean(axis=2)
        assert (distances.min(axis=1) < 3).all()
        assert (np.sort(distances, axis=1)[:, 1] > distances.min(axis=1) + 1).all()
        return distances.argmin(axis=1).tolist()

    return find


@pytest.fixture
def order(train_faces, even, numbers):
    """The numbers of the faces as a stream gives them, one list for each epoch."""

    def read(epochs, seed=0, first_epoch=0):
        steps = len(train_faces) // BATCH
        stream = train_batches(train_faces, even, BATCH, 64, seed, first_epoch).take(epochs * steps)
        found = [number for images, _ in stream for number in numbers(images.numpy())]
        return [found[i : i + steps * BATCH] for i in range(0, len(found), steps * BATCH)]

    return read


def thumbnails(images):
    small = images.reshape(len(images), 16, 4, 16, 4, 3).mean(axis=(2, 4))
    return small.reshape(len(images), -1)


def all_images(batches):
    return np.concatenate([images.numpy() for images, _ in batches])


def greatest_difference(images, others):
    return int(np.abs(images.astype(int) - others).max())


# The order


def test_the_same_seed_gives_the_same_order(order):
    assert order(2, seed=7) == order(2, seed=7)


def test_another_seed_gives_another_order(order):
    assert order(1, seed=7) != order(1, seed=8)


def test_every_epoch_has_an_order_of_its_own(order):
    first, second, third = order(3)
    assert first != second
    assert second != third
    assert first != third
    assert first != sorted(first)


@pytest.mark.parametrize("k", [1, 2])
def test_a_stream_from_epoch_k_goes_on_as_the_one_from_the_start(order, k):
    assert order(3)[k:] == order(3 - k, first_epoch=k)


def test_an_epoch_shows_every_face_at_most_once_where_all_weigh_the_same(order, train_faces):
    for epoch in order(3):
        assert len(epoch) == len(train_faces) // BATCH * BATCH
        assert len(set(epoch)) == len(epoch)


def test_faces_left_out_of_one_epoch_come_in_another(train_faces, even, numbers):
    # 13 batches of 20 leave 16 of the 276 faces over.
    assert len(train_faces) % 20 == 16
    stream = train_batches(train_faces, even, 20, 64, 0, 0).take(4 * (len(train_faces) // 20))
    seen = {number for images, _ in stream for number in numbers(images.numpy())}
    assert len(seen) == len(train_faces)


def test_an_epoch_shows_each_face_as_often_as_its_weight_says(train_faces, numbers):
    count = len(train_faces)
    weights = np.where(np.arange(count) < 20, 3.0, 0.5)
    expected = weights * count / weights.sum()
    shown = np.zeros(count, int)
    for images, _ in train_batches(train_faces, weights, 4, 64, 0, 0).take(count // 4):
        np.add.at(shown, numbers(images.numpy()), 1)
    assert shown.sum() == count // 4 * 4
    assert (shown <= np.ceil(expected)).all()
    # At most the three faces of the last, smaller batch are missing.
    assert np.maximum(0, np.floor(expected) - shown).sum() <= 3


# Images and targets


def test_training_sees_the_pixels_that_evaluation_and_prediction_see(val_faces):
    images = all_images(ordered_batches(val_faces, BATCH, 64))
    assert images.dtype == np.uint8
    expected = np.stack([val_faces.image(i) for i in range(len(val_faces))])
    assert images.shape == expected.shape
    assert greatest_difference(images, expected) <= 1


def test_images_are_rgb(val_faces):
    images = all_images(ordered_batches(val_faces, BATCH, 64)).astype(float)
    # Skin is more red than blue.
    assert images[..., 0].mean() > images[..., 2].mean() + 10


def test_targets_belong_to_their_images(train_faces, even, numbers):
    for images, targets in train_batches(train_faces, even, BATCH, 64, 3, 0).take(20):
        found = numbers(images.numpy())
        ages = train_faces.age[found]
        assert targets["age"].numpy().tolist() == [[age, age] for age in ages]
        assert targets["age_branch"].numpy().tolist() == age_branch(ages).tolist()
        assert targets["gender"].numpy().tolist() == train_faces.gender[found].tolist()


def test_ordered_batches_give_every_face_once_in_order(val_faces):
    batches = list(ordered_batches(val_faces, 20, 64))
    assert [len(images) for images, _ in batches] == [20, 20, 4]
    genders = np.concatenate([targets["gender"].numpy() for _, targets in batches])
    assert genders.tolist() == val_faces.gender.tolist()
    ages = np.concatenate([targets["age"].numpy() for _, targets in batches])
    assert ages.tolist() == [[age, age] for age in val_faces.age]


def test_a_range_has_its_ends_and_no_branch_if_it_is_in_several(val_faces):
    faces = val_faces.select(np.arange(4))
    faces.age, faces.age_high = np.array([[3, 13, 60, 30], [9, 14, 85, 30]])
    [(_, targets)] = ordered_batches(faces, 4, 64)
    assert targets["age"].numpy().tolist() == [[3, 9], [13, 14], [60, 85], [30, 30]]
    assert targets["age_branch"].numpy().tolist() == [0, -1, 4, 2]


def test_several_data_sets_come_one_after_the_other(sample_faces, tmp_path):
    table = read_table("utkface", sample_faces).assign(split="train")
    images = sample_faces.raw / "UTKFace"
    clean_table(table, images, tmp_path / "utkface", "utkface", sample_faces)
    both = FaceSet([sample_faces.faces / "wiki", tmp_path / "utkface"], "train")
    assert len(both) == 276 + 140
    found = thumbnails(all_images(ordered_batches(both, 64, 64)))
    expected = thumbnails(np.stack([both.image(i) for i in range(len(both))]))
    assert np.abs(found - expected).max() < 6


@pytest.mark.parametrize("image_size", [32, 96])
def test_images_are_resized_where_the_network_sees_another_size(val_faces, image_size):
    images = all_images(ordered_batches(val_faces, BATCH, image_size))
    assert images.dtype == np.uint8
    assert images.shape == (len(val_faces), image_size, image_size, 3)
    way = cv2.INTER_AREA if image_size < 64 else cv2.INTER_LINEAR
    for i in (0, len(val_faces) - 1):
        expected = cv2.resize(val_faces.image(i), (image_size, image_size), interpolation=way)
        assert np.abs(images[i].astype(int) - expected).mean() < 4


def test_shapes_are_known_before_the_first_batch(train_faces, even):
    # Otherwise the training step is traced anew for each shape.
    images, targets = train_batches(train_faces, even, BATCH, 64, 0, 0).element_spec
    assert images.shape[1:] == (64, 64, 3)
    assert targets["age"].shape[1:] == (2,)
    assert targets["gender"].shape.rank == 1
