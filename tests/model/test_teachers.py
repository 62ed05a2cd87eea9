from pathlib import Path

import numpy as np
import pytest
from conftest import build_tiny_model

from agelib import AgelibError
from agelib.backend import keras
from agelib.labels import age_branch
from agelib.model.network import build_model
from agelib.model.saved import load_model, save_model
from agelib.model.teachers import Teachers
from agelib.training.recipe import compile_model


@pytest.fixture
def teachers(tmp_path):
    """Files of two models, the second for larger images."""
    files = [tmp_path / f"{size}.keras" for size in (32, 48)]
    for seed, file in enumerate(files):
        keras.utils.set_random_seed(seed)
        save_model(build_tiny_model("", int(file.stem), augment=False), file, {})
    return [str(file) for file in files]


@pytest.fixture
def faces(rng):
    ages = np.array([5, 20, 44, 70])
    images = rng.uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    labels = {"age": np.stack([ages, ages], axis=1), "gender": np.array([0, 1, 1, 0])}
    return images, labels | {"age_branch": age_branch(ages)}


def cross_entropy(told, output):
    return -(np.asarray(told) * np.log(np.asarray(output))).sum(axis=1).mean()


def test_seven_tenths_of_the_loss_are_the_distance_from_the_teachers_mean(teachers, faces):
    taught = build_model("EfficientNetLite0", 32, augment=False, teachers=teachers)
    alone = build_model("EfficientNetLite0", 32, augment=False)
    alone.set_weights(taught.get_weights())
    for model in (taught, alone):
        compile_model(model, 10)
    losses = [
        model.evaluate(*faces, verbose=0, return_dict=True)["loss"] for model in (taught, alone)
    ]
    images, outputs = faces[0], alone(faces[0])
    small, large = (load_model(file)[0] for file in teachers)
    answers = small(images), large(keras.ops.image.resize(images, (48, 48)))
    distance = sum(
        cross_entropy((answers[0][head] + answers[1][head]) / 2, outputs[head]) for head in outputs
    )
    assert losses[0] == pytest.approx(0.3 * losses[1] + 0.7 * distance, rel=1e-4)


def test_a_network_learns_what_its_teacher_answers(teachers, faces):
    teacher, _ = load_model(teachers[0])
    weights, bias = teacher.get_layer("age_logits").get_weights()
    bias[60 - 1] += 10
    teacher.get_layer("age_logits").set_weights([weights, bias])
    save_model(teacher, Path(teachers[0]), {})
    taught = build_tiny_model("", 32, teachers=teachers[:1])
    [layer] = [layer for layer in taught.layers if isinstance(layer, Teachers)]
    told = [answers["age"].numpy() for answers in layer.answers(faces[0])]
    compile_model(taught, 100)
    taught.optimizer.learning_rate = 0.02
    taught.fit(*faces, epochs=100, verbose=0)
    # Whatever the labels say, which are 5 to 70 years.
    assert np.asarray(taught(faces[0])["age"])[:, 60 - 1].min() > 0.4
    again = [answers["age"].numpy() for answers in layer.answers(faces[0])]
    np.testing.assert_array_equal(again, told)  # it learned nothing itself


def test_the_teachers_are_no_part_of_the_network(teachers):
    taught = build_tiny_model("", 32, teachers=teachers)
    assert taught.count_params() == build_tiny_model("", 32).count_params()


def test_a_checkpoint_without_its_teacher_says_what_is_missing(teachers, tmp_path):
    path = tmp_path / "last.keras"
    save_model(build_tiny_model("", 32, teachers=teachers), path, {})
    Path(teachers[1]).unlink()
    with pytest.raises(AgelibError, match=r"48\.keras is missing"):
        load_model(path)


def test_a_missing_teacher_is_one_sentence(tmp_path):
    with pytest.raises(AgelibError, match=r"lost\.keras is missing"):
        build_model("EfficientNetLite0", 32, teachers=[str(tmp_path / "lost.keras")])
