import numpy as np
import pytest

from agelib.backend import keras, tf
from agelib.labels import AGE_BRANCHES
from agelib.model.losses import AgeLoss, BranchAccuracy, GenderLoss, YearsOff, age_distributions

# Label distributions


def test_an_age_becomes_a_bell_curve_that_sums_to_one_and_peaks_at_the_age():
    curves = age_distributions()
    assert curves.shape == (85, 85)
    np.testing.assert_allclose(curves.sum(axis=1), 1, atol=1e-6)
    assert curves.argmax(axis=1).tolist() == list(range(85))
    assert (curves >= 0).all()


def test_the_curve_is_symmetric_and_two_years_wide():
    curves = age_distributions()
    np.testing.assert_allclose(curves[40, 35:40], curves[40, 45:40:-1], rtol=1e-5)
    assert curves[40, 42] / curves[40, 40] == pytest.approx(np.exp(-0.5), rel=1e-4)


def test_at_the_ends_the_curve_is_cut_off_and_still_sums_to_one():
    curves = age_distributions()
    assert curves[0, 0] > curves[40, 40]
    assert curves[-1, -1] == pytest.approx(curves[0, 0])


# What an age costs


@pytest.fixture
def ages(rng):
    """Probabilities of the years for four faces."""
    return rng.dirichlet(np.full(85, 0.5), 4).astype(np.float32) * 0.999 + 0.001 / 85


def costs(labels, ages):
    return AgeLoss().call(np.array(labels, np.int32), ages).numpy()


def test_an_exact_age_costs_its_curve_s_cross_entropy_and_its_branch_s_probability(ages):
    years = [1, 13, 14, 85]
    expected = []
    for year, probabilities in zip(years, ages, strict=True):
        [(low, high)] = [branch for branch in AGE_BRANCHES if branch[0] <= year <= branch[1]]
        distance = -(age_distributions()[year - 1] * np.log(probabilities)).sum()
        expected.append(distance - np.log(probabilities[low - 1 : high].sum()))
    np.testing.assert_allclose(costs([[y, y] for y in years], ages), expected, rtol=1e-5)


def test_a_range_costs_the_probability_of_its_years_whichever_branches_they_are_in(ages):
    ranges = [(3, 9), (10, 19), (60, 85), (1, 85)]
    sums = [p[low - 1 : high].sum() for (low, high), p in zip(ranges, ages, strict=True)]
    np.testing.assert_allclose(costs(ranges, ages), -np.log(sums), rtol=1e-5, atol=1e-6)


def test_a_batch_may_mix_exact_ages_and_ranges(ages):
    labels = [(30, 30), (20, 29), (13, 14), (50, 50)]
    alone = [costs([label], one[None])[0] for label, one in zip(labels, ages, strict=True)]
    np.testing.assert_allclose(costs(labels, ages), alone, rtol=1e-6)
    assert float(AgeLoss()(np.array(labels), ages)) == pytest.approx(np.mean(alone), rel=1e-5)


@pytest.mark.parametrize("label", [(30, 30), (25, 32), (60, 85)])
def test_what_seems_impossible_costs_much_and_still_has_a_gradient(label):
    sure = tf.constant(np.eye(85, dtype=np.float32)[[4]])
    with tf.GradientTape() as tape:
        tape.watch(sure)
        cost = AgeLoss()(np.array([label]), sure)
    assert 15 < float(cost) < 40
    assert np.isfinite(tape.gradient(cost, sure)).all()


def test_half_floats_are_counted_as_full_ones(ages):
    labels = np.array([(30, 30), (20, 29), (13, 14), (50, 50)])
    for dtype in (tf.float16, tf.bfloat16):
        half = tf.cast(ages, dtype)
        cost = AgeLoss()(labels, half)
        assert cost.dtype == tf.float32
        assert float(cost) == pytest.approx(float(AgeLoss()(labels, tf.cast(half, tf.float32))))


def test_a_gender_may_be_wrong_in_one_label_of_forty():
    predicted = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    expected = -0.975 * np.log([0.9, 0.2]) - 0.025 * np.log([0.1, 0.8])
    np.testing.assert_allclose(GenderLoss().call(np.array([0, 0]), predicted), expected, rtol=1e-5)


# Metrics


def exactly(*years):
    return np.array([[year, year] for year in years])


def test_years_off_is_the_mean_distance_of_the_median():
    one_hot = np.eye(85, dtype=np.float32)
    metric = YearsOff()
    metric.update_state(exactly(30, 10), one_hot[[36, 4]])
    assert float(metric.result()) == pytest.approx((7 + 5) / 2)
    torn = np.zeros((1, 85), np.float32)
    torn[0, [19, 29, 79]] = 0.3, 0.3, 0.4  # its median is 30, its mean 47
    metric.update_state(exactly(30), torn)
    assert float(metric.result()) == pytest.approx((7 + 5 + 0) / 3)


def test_years_off_knows_the_age_at_both_ends():
    metric = YearsOff()
    metric.update_state(exactly(1, 85), np.eye(85, dtype=np.float32)[[0, 84]])
    assert float(metric.result()) == 0


@pytest.mark.parametrize(("year", "off"), [(2, 1), (3, 0), (6, 0), (9, 0), (12, 3)])
def test_within_a_range_no_year_is_off(year, off):
    metric = YearsOff()
    metric.update_state(np.array([[3, 9]]), np.eye(85, dtype=np.float32)[[year - 1]])
    assert float(metric.result()) == off


def test_branch_accuracy_leaves_out_labels_of_several_branches():
    metric = BranchAccuracy()
    predicted = np.eye(5, dtype=np.float32)[[0, 1, 4, 4]]
    metric.update_state(np.array([-1, -1, -1, -1]), predicted)
    assert float(metric.result()) == 0
    metric.update_state(np.array([0, 2, -1, 4]), predicted)
    assert float(metric.result()) == pytest.approx(2 / 3)


def test_branch_accuracy_counts_in_a_graph_for_any_number_of_faces():
    metric = BranchAccuracy()
    metric.update_state(np.array([0]), np.eye(5)[[0]])
    signature = [tf.TensorSpec((None,), tf.int32), tf.TensorSpec((None, 5), tf.float32)]
    count = tf.function(lambda true, said: metric.update_state(true, said), signature)
    count(np.array([1, 2], np.int32), np.eye(5, dtype=np.float32)[[1, 3]])
    assert float(metric.result()) == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", [AgeLoss, GenderLoss, YearsOff, BranchAccuracy])
def test_a_checkpoint_s_reader_gets_losses_and_metrics_back(kind):
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(kind(name="its_name"))
    )
    assert type(restored) is kind
    assert restored.name == "its_name"
