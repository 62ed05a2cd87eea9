import numpy as np
import pytest
from skimage import data

from agelib.backend import keras, tf
from agelib.model.augment import RandomAffine, RandomLight, RandomResolution, build_augmentation


@pytest.fixture(scope="module")
def augmentation():
    keras.utils.set_random_seed(1)
    return build_augmentation()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(2).integers(0, 256, (5, 64, 64, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def portrait():
    return data.astronaut()[30:222:3, 130:322:3].astype(np.float32)


def spot(x, y, size=65):
    """A picture with one soft bright spot."""
    xs, ys = np.meshgrid(np.arange(size), np.arange(size))
    return np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 18).astype(np.float32)[..., None] * 255


def centres(images):
    """Returns where the spots are, as (x, y) from the middle."""
    images = np.asarray(images)[..., 0]
    at = np.arange(images.shape[1]) - (images.shape[1] - 1) / 2
    mass = images.sum(axis=(1, 2))
    return np.stack([(images.sum(axis=axis) @ at) / mass for axis in (1, 2)], axis=1)


def moved(layer, image, count=64):
    return layer(np.repeat(image[None], count, axis=0), training=True)


# All of it


def test_images_are_varied_in_training_only(augmentation, images):
    np.testing.assert_array_equal(augmentation(images, training=False), images)
    first, second = (np.asarray(augmentation(images, training=True)) for _ in range(2))
    for other in (images, second):
        changes = np.abs(first - other).mean(axis=(1, 2, 3))
        assert (changes > 0.1).all()
        assert changes.mean() > 10


def test_a_varied_image_still_has_colours_of_0_to_255(augmentation, images):
    varied = np.asarray(augmentation(images, training=True))
    assert varied.min() >= 0
    assert varied.max() <= 255


def test_a_varied_portrait_still_shows_the_face(augmentation, portrait):
    mean = np.asarray(moved(augmentation, portrait)).mean(axis=0)
    mirrored_mean = (portrait + portrait[:, ::-1]) / 2
    assert np.corrcoef(mean.ravel(), mirrored_mean.ravel())[0, 1] > 0.85


LAYERS = {
    "affine": lambda **options: RandomAffine(degrees=10, scale=0.1, translate=0.05, **options),
    "light": lambda **options: RandomLight(0.25, 0.35, 0.1, 0.2, **options),
    "resolution": lambda **options: RandomResolution(0.5, **options),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


@each_layer
def test_each_layer_varies_each_image_by_itself_and_in_training_only(make, portrait):
    layer = make()
    same = layer(portrait[None], training=False)
    np.testing.assert_array_equal(same[0], portrait)
    varied = np.asarray(moved(layer, portrait))
    assert varied.min() >= 0
    assert varied.max() <= 255
    kinds = len(np.unique(varied.round(2), axis=0))
    assert kinds == (3 if isinstance(layer, RandomResolution) else 64)
    assert not np.array_equal(moved(layer, portrait), varied)


@each_layer
def test_each_layer_works_in_a_graph_for_any_number_of_images(make, portrait):
    layer = make()
    specification = tf.TensorSpec((None, 64, 64, 3), tf.float32)
    graph = tf.function(lambda batch: layer(batch, training=True), input_signature=[specification])
    for count in (1, 3):
        assert graph(np.repeat(portrait[None], count, axis=0)).shape == (count, 64, 64, 3)


@each_layer
def test_half_floats_show_what_full_ones_do(make, portrait):
    found = []
    for dtype in ("float32", "float16", "mixed_float16"):
        keras.utils.set_random_seed(1)
        layer = make(dtype=dtype)
        found.append(moved(layer, portrait, 3))
    full, *halves = found
    assert [half.dtype for half in halves] == [tf.float16, tf.float16]
    for half in halves:
        np.testing.assert_allclose(half, full, atol=0.6)


@each_layer
def test_a_copy_made_from_its_settings_is_the_same_layer(make, portrait):
    keras.utils.set_random_seed(1)
    layer = make(name="varied")
    keras.utils.set_random_seed(1)
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    images = [np.asarray(moved(one, portrait, 3)) for one in (layer, again)]
    np.testing.assert_array_equal(*images)


# Lit


def test_a_quarter_of_the_images_is_darker_down_to_the_least_light():
    grey = np.full((2, 2, 3), 200, np.float32)
    layer = RandomLight(darkest=0.25, gamma=0, colour=0, contrast=0)
    shares = np.asarray(moved(layer, grey, 4000)).mean(axis=(1, 2, 3)) / 200
    assert 0.249 < shares.min() < 0.26
    assert 1.14 < shares.max() < 1.151
    assert (shares < 0.5).mean() == pytest.approx(0.25 / 2, abs=0.03)  # evenly by exposure


def test_light_has_a_colour_and_a_contrast():
    halves = np.full((4, 4, 3), 60, np.float32)
    halves[2:] = 180
    coloured = np.asarray(moved(RandomLight(1.0, 0, 0.1, 0), halves))
    gains = coloured[:, 2, 2] / coloured[:, 2, 2].mean(axis=1, keepdims=True)
    assert np.ptp(gains, axis=1).max() > 0.1
    flat_or_hard = np.asarray(moved(RandomLight(1.0, 0, 0, 0.2), halves))
    distance = (flat_or_hard[:, 2] - flat_or_hard[:, 0]).mean(axis=(1, 2)) / flat_or_hard.mean(
        axis=(1, 2, 3)
    )
    assert 0.79 < distance.min() < 0.9
    assert 1.1 < distance.max() < 1.21


# Coarse


def test_some_images_lose_what_is_finer_than_two_or_three_pixels():
    stripes = np.zeros((60, 60, 3), np.float32)
    stripes[:, ::2] = 255
    found = np.asarray(moved(RandomResolution(share=0.5), stripes, 2000))
    fine = found[:, 20:40, 20:40].std(axis=(1, 2, 3))
    assert (fine > 100).mean() == pytest.approx(0.5, abs=0.05)
    assert (fine < 1).mean() == pytest.approx(0.25, abs=0.05)  # half as many pixels: all grey
    steps = np.repeat(np.repeat(np.arange(10) * 25, 6)[None, :, None], 60, axis=0).repeat(3, axis=2)
    for image in np.asarray(moved(RandomResolution(share=1), steps.astype(np.float32), 8)):
        assert np.abs(image - steps).mean() < 10  # what is coarser stays where it was


# Turned, scaled and moved


def test_no_amounts_change_nothing(portrait):
    same = moved(RandomAffine(degrees=0, scale=0, translate=0), portrait, 2)
    np.testing.assert_allclose(same[0], portrait, atol=1e-2)


def test_a_turn_keeps_the_distance_to_the_centre_and_stays_within_its_degrees():
    layer = RandomAffine(degrees=30, scale=0, translate=0)
    found = centres(moved(layer, spot(52, 32)))
    np.testing.assert_allclose(np.hypot(*found.T), 20, atol=0.3)
    degrees = np.rad2deg(np.arctan2(found[:, 1], found[:, 0]))
    assert -30.5 < degrees.min() < -20
    assert 20 < degrees.max() < 30.5


def test_a_change_of_size_moves_things_from_the_centre_by_at_most_its_share():
    layer = RandomAffine(degrees=0, scale=0.2, translate=0)
    found = centres(moved(layer, spot(52, 32)))
    np.testing.assert_allclose(found[:, 1], 0, atol=0.1)
    assert 15.7 < found[:, 0].min() < 17.5
    assert 22.5 < found[:, 0].max() < 24.3


def test_a_move_is_at_most_its_share_of_a_side_and_each_image_has_its_own():
    layer = RandomAffine(degrees=0, scale=0, translate=0.1)
    found = centres(moved(layer, spot(32, 32)))
    assert np.abs(found).max() <= 6.6
    assert (found.max(axis=0) > 4).all()
    assert (found.min(axis=0) < -4).all()
    assert len(np.unique(found.round(3), axis=0)) == 64


def test_a_move_is_no_further_where_images_are_turned_and_scaled_too():
    found = centres(moved(RandomAffine(degrees=45, scale=0.2, translate=0.1), spot(32, 32)))
    assert np.abs(found).max() <= 6.6


def test_the_sides_of_an_image_are_not_confused():
    wide = spot(50, 50, 101)[25:76]
    found = np.asarray(moved(RandomAffine(degrees=0, scale=0, translate=0.1), wide))[..., 0]
    rows, columns = (found.sum(axis=axis).argmax(axis=1) for axis in (2, 1))
    assert 7 < np.abs(columns - 50).max() <= 11
    assert 3 < np.abs(rows - 25).max() <= 6


def test_what_comes_in_at_the_edge_repeats_the_edge():
    ramp = np.tile(np.arange(0.0, 128, 4, np.float32)[None, :, None], (32, 1, 3))
    found = np.asarray(moved(RandomAffine(0, 0, 0.3), ramp))
    assert found.min() >= 0
    assert found.max() <= 124
    for row in found[:, 16, :, 0]:
        assert (np.diff(row) >= -1e-3).all()  # neither mirrored nor begun anew
        assert row[0] < 1e-3 or row[-1] > 124 - 1e-3


def test_all_of_it_compiles_for_a_tpu(augmentation, images):
    compiled = tf.function(lambda batch: augmentation(batch, training=True), jit_compile=True)
    assert compiled(images).shape == images.shape
