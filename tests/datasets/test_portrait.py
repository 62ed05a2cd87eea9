import numpy as np

from agelib.datasets.portrait import draw_portrait


def test_age_and_gender_can_be_seen():
    def draw(age, gender):
        return draw_portrait(age, gender, np.random.default_rng(3)).astype(float)

    def colour(image):
        return np.ptp(image, axis=2).mean()

    assert colour(draw(80, 1)) < 0.5 * colour(draw(30, 1))
    assert np.abs(draw(30, 0) - draw(30, 1)).mean() > 2
    assert np.abs(draw(5, 1) - draw(30, 1)).mean() > 2


def test_a_portrait_depends_on_the_generator_alone(rng):
    first = draw_portrait(30, 1, np.random.default_rng(0))
    assert np.array_equal(first, draw_portrait(30, 1, rng))
    assert not np.array_equal(first, draw_portrait(30, 1, rng))
    assert (first.dtype, first.shape) == (np.uint8, (200, 200, 3))
