import math
import re
import zipfile
from urllib.error import URLError

import cv2
import numpy as np
import pytest
from conftest import equal_weights
from skimage import data

from agelib import AgelibError
from agelib.backbones import DROP_CONNECT_RATE, LITE0_WEIGHTS
from agelib.backend import keras, tf
from agelib.labels import AGE_BRANCHES
from agelib.model.network import (
    backbone_of,
    build_backbone,
    build_model,
    scale_logits,
    set_batch_norm_momentum,
)
from agelib.model.saved import load_model, save_model

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


HEADS = {"age": 85, "age_branch": 5, "gender": 2}


REPEATS = (1, 2, 2, 3, 3, 4, 1)


DEPTHS = {"EfficientNetB0": 1, "EfficientNetB4": 1.8}


def make_backbone(name, image_size, weights=None):
    return build_backbone(name, image_size, weights, DROP_CONNECT_RATE)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    return build_model("EfficientNetB0", 64)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(2).integers(0, 256, (5, 64, 64, 3), np.uint8)


def eager(model, images):
    """Runs a large network once, which takes less time than to compile it."""
    outputs = model(images.astype(np.float32), training=False)
    return keras.tree.map_structure(np.asarray, outputs)


def part_of(model, layer):
    return keras.Model(model.input, model.get_layer(layer).output)


# Outputs


def test_the_three_outputs_are_named_and_shaped(model, images):
    outputs = model.predict_on_batch(images)
    assert {name: output.shape for name, output in outputs.items()} == {
        name: (5, count) for name, count in HEADS.items()
    }
    for output in outputs.values():
        assert output.dtype == np.float32
        assert (output >= 0).all()
        np.testing.assert_allclose(output.sum(axis=1), 1, atol=1e-5)


def test_a_branch_has_the_sum_of_its_years(model, images):
    outputs = model.predict_on_batch(images)
    for i, (low, high) in enumerate(AGE_BRANCHES):
        years = outputs["age"][:, low - 1 : high].sum(axis=1)
        np.testing.assert_allclose(outputs["age_branch"][:, i], years, atol=1e-6)


def test_the_branches_are_a_layer_that_plain_keras_reads(images, tmp_path):
    model = build_model("EfficientNetB0", 64, augment=False)
    assert model.get_layer("age_branch").output.shape == (None, 5)
    assert not model.get_layer("age_branch").weights
    save_model(model, tmp_path / "model.keras", {})
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        modules = set(re.findall(r'"module": "([^"]+)"', archive.read("config.json").decode()))
    assert all(name.startswith("keras") for name in modules)
    plain = keras.models.load_model(tmp_path / "model.keras")
    expected = eager(model, images)["age_branch"]
    np.testing.assert_allclose(eager(plain, images)["age_branch"], expected, atol=1e-6)


def test_a_model_from_before_they_were_a_layer_is_trained_on(model, images, tmp_path):
    age, gender = model.get_layer("age").output, model.get_layer("gender").output
    sums = [keras.ops.sum(age[:, a - 1 : b], axis=1, keepdims=True) for a, b in AGE_BRANCHES]
    outputs = {"age": age, "age_branch": keras.ops.concatenate(sums, axis=1), "gender": gender}
    save_model(keras.Model(model.input, outputs, name="agelib"), tmp_path / "before.keras", {})
    before, _ = load_model(tmp_path / "before.keras")
    backbone_of(before).trainable = False
    assert len(before.trainable_variables) == 4
    backbone_of(before).trainable = True
    after = build_model("EfficientNetB0", 64, str(tmp_path / "before.keras"))
    expected = eager(before, images)
    for name, found in eager(after, images).items():
        np.testing.assert_allclose(found, expected[name], atol=1e-6)


def test_a_temperature_reaches_every_output_of_its_head(images):
    model = build_model("EfficientNetB0", 64)
    before = eager(model, images)
    scale_logits(model, "age", 2)
    after = eager(model, images)
    np.testing.assert_array_equal(after["gender"], before["gender"])
    flatter = before["age"] ** 0.5 / (before["age"] ** 0.5).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(after["age"], flatter, rtol=1e-4)
    np.testing.assert_allclose(after["age_branch"][:, 0], flatter[:, :13].sum(axis=1), rtol=1e-4)


def test_bytes_and_floats_give_the_same(model, images):
    as_bytes = model.predict_on_batch(images)
    as_floats = model.predict_on_batch(images.astype(np.float32))
    for name in HEADS:
        np.testing.assert_array_equal(as_bytes[name], as_floats[name])


def test_the_input_is_normalised_as_imagenet_weights_expect(model, images):
    seen = part_of(model, "normalisation").predict_on_batch(images)
    np.testing.assert_allclose(seen, (images / 255 - MEAN) / STD, atol=1e-4)


def test_lite_networks_see_pixels_as_theirs_did(images):
    lite = build_model("EfficientNetLite0", 64, augment=False)
    seen = part_of(lite, "normalisation").predict_on_batch(images)
    np.testing.assert_allclose(seen, (images.astype(float) - 127) / 128, atol=1e-6)


def test_half_floats_leave_pixels_and_probabilities_whole(images):
    half = build_model("EfficientNetLite0", 64, precision="mixed_float16")
    layers = {layer.name: layer.compute_dtype for layer in half._flatten_layers()}
    assert layers["stem_conv"] == layers["age_logits"] == "float16"
    for name in ("affine", "light", "resolution", "erasing", "normalisation", "age", "gender"):
        assert layers[name] == "float32"
    assert all(output.dtype == tf.float32 for output in half(images, training=True).values())


def test_the_backbone_alone_has_all_weights_before_the_heads(model):
    assert {layer.name for layer in model.layers if layer.trainable_weights} == {
        "efficientnet-b0",
        "age_logits",
        "gender_logits",
    }


# Augmentation


def test_images_are_varied_in_training_only(model, images):
    eyes = part_of(model, "normalisation")
    untouched = np.asarray(eyes(images, training=False))
    np.testing.assert_allclose(untouched, (images / 255 - MEAN) / STD, atol=1e-4)
    varied = np.asarray(eyes(images, training=True))
    assert (np.abs(varied - untouched).mean(axis=(1, 2, 3)) > 1e-3).all()


def test_augmentation_can_be_left_out():
    plain = build_model("EfficientNetB0", 32, augment=False)
    assert "augmentation" not in [layer.name for layer in plain.layers]


# Heads first


def test_a_frozen_backbone_leaves_the_heads_and_thaws_as_a_whole():
    model = build_model("EfficientNetB0", 32)
    everything = {weights.path for weights in model.trainable_weights}
    backbone_of(model).trainable = False
    heads = {weights.path for weights in model.trainable_weights}
    assert {path.split("/")[0] for path in heads} == {"age_logits", "gender_logits"}
    backbone_of(model).trainable = True
    assert {weights.path for weights in model.trainable_weights} == everything


def test_the_statistics_of_the_backbone_may_be_as_old_as_asked_for():
    model = build_model("EfficientNetLite0", 32)
    set_batch_norm_momentum(model, 0.75)
    layers = model.get_layer("EfficientNetLite0").layers
    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == 49
    assert {norm.momentum for norm in norms} == {0.75}


# Weights of another model


def test_a_model_of_ours_gives_its_weights_to_another(model, images, tmp_path):
    path = tmp_path / "model.keras"
    save_model(model, path, {})
    other = build_model("EfficientNetB0", 64, str(path))
    expected, found = eager(model, images), eager(other, images)
    for name in HEADS:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)


def test_weights_may_come_from_a_model_of_another_image_size(model, tmp_path):
    path = tmp_path / "model.keras"
    save_model(model, path, {})
    other = build_model("EfficientNetB0", 96, str(path))
    ours = [w for w in model.get_weights() if w.ndim == 4]
    theirs = [w for w in other.get_weights() if w.ndim == 4]
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_weights_of_another_backbone_are_refused(model, tmp_path):
    path = tmp_path / "model.keras"
    save_model(model, path, {})
    with pytest.raises(AgelibError, match="does not fit: it is of another backbone"):
        build_model("EfficientNetB1", 64, str(path))


@pytest.mark.parametrize("file", ["missing.keras", "missing.h5"])
def test_a_missing_weights_file_is_named(tmp_path, file):
    with pytest.raises(AgelibError, match=file):
        build_model("EfficientNetB0", 32, str(tmp_path / file))


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    def fail(*arguments, **options):
        raise URLError("Name or service not known")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", fail)
    # Weights that were downloaded once would be found there.
    monkeypatch.setattr("keras.src.utils.file_utils.config.keras_home", lambda: str(tmp_path))


# Drop-connect


@pytest.mark.parametrize("name", DEPTHS)
def test_drop_connect_rises_evenly_to_the_papers_rate(name):
    repeats = [math.ceil(DEPTHS[name] * count) for count in REPEATS]
    places = [
        f"block{stage + 1}{'abcdefghijklm'[i]}_drop"
        for stage, count in enumerate(repeats)
        for i in range(count)
    ]
    backbone = make_backbone(name, 32)
    rates = {layer.name: layer.rate for layer in backbone.layers if layer.name.endswith("_drop")}
    # Only blocks that keep size and channels have a way around them.
    assert set(rates) == {place for place in places if place[6] != "a"}
    for place, rate in rates.items():
        assert rate == pytest.approx(0.2 * places.index(place) / len(places), abs=1e-6)
    assert max(rates.values()) == pytest.approx(
        {"EfficientNetB0": 0.2 * 14 / 16, "EfficientNetB4": 0.2 * 31 / 32}[name]
    )


def test_drop_connect_drops_whole_paths():
    backbone = make_backbone("EfficientNetB0", 32)
    layer = backbone.get_layer("block6d_drop")
    outputs = np.asarray(layer(np.ones((400, 1, 1, 7), np.float32), training=True))
    assert set(np.unique(outputs.min(axis=(1, 2, 3)) == 0)) == {True, False}
    assert (outputs.min(axis=(1, 2, 3)) == outputs.max(axis=(1, 2, 3))).all()
    assert (outputs == 0).mean() == pytest.approx(layer.rate, abs=0.08)


# EfficientNet-Lite

# github.com/tensorflow/tpu, models/official/efficientnet/lite: millions of parameters.
LITE = {
    "EfficientNetLite0": ((1, 2, 2, 3, 3, 4, 1), 4.7),
    "EfficientNetLite1": ((1, 3, 3, 4, 4, 5, 1), 5.4),
    "EfficientNetLite2": ((1, 3, 3, 4, 4, 5, 1), 6.1),
    "EfficientNetLite3": ((1, 3, 3, 5, 5, 6, 1), 8.2),
    "EfficientNetLite4": ((1, 4, 4, 6, 6, 8, 1), 13.0),
}
CLASSIFIER = 1280 * 1000 + 1000


@pytest.mark.parametrize("name", LITE)
def test_a_lite_network_is_the_published_one(name):
    repeats, millions = LITE[name]
    backbone = make_backbone(name, 32)
    parameters = sum(int(np.prod(each.shape)) for each in backbone.trainable_weights)
    assert round((parameters + CLASSIFIER) / 1e6, 1) == millions
    names = [layer.name for layer in backbone.layers]
    blocks = [
        [block for block in names if block.startswith(f"block{i}") and block.endswith("_dwconv")]
        for i in range(1, 8)
    ]
    assert tuple(map(len, blocks)) == repeats
    assert not [each for each in names if "_se_" in each]
    assert backbone.get_layer("stem_conv").filters == 32
    assert backbone.output_shape == (None, 1, 1, 1280)
    activations = [x for x in backbone.layers if isinstance(x, keras.layers.Activation)]
    assert {layer.activation.__name__ for layer in activations} == {"relu6"}
    rates = [layer.rate for layer in backbone.layers if layer.name.endswith("_drop")]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.2 * (sum(repeats) - 2) / sum(repeats))


@pytest.mark.usefixtures("no_network")
def test_lite0_s_weights_come_with_agelib():
    # With 32-bit weights, the features of the PyTorch network that they are from differ by at most
    # 3e-5; the 16 bits of the file move them by 0.085 at most, where they reach 6.0.
    backbone = make_backbone("EfficientNetLite0", 224, "imagenet")
    image = cv2.resize(data.astronaut(), (224, 224), interpolation=cv2.INTER_AREA)
    pooled = eager(backbone, (image[None].astype(np.float32) - 127) / 128).mean(axis=(0, 1, 2))
    assert pooled.argsort()[-5:].tolist() == [667, 1112, 22, 283, 684]
    expected = [0, 0.04117, 0, 0.51206, 0.01930, 0, 0.07309, 0.13974]
    np.testing.assert_allclose(pooled[:8], expected, atol=1e-3)
    assert pooled[684] == pytest.approx(2.8096, abs=3e-3)
    assert pooled.mean() == pytest.approx(0.26019, abs=5e-4)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["EfficientNetLite1", "EfficientNetLite4"])
def test_weights_that_agelib_lacks_are_to_be_made(name):
    with pytest.raises(AgelibError, match=f"^imagenet weights for {name} are not part") as caught:
        build_model(name, 32, "imagenet")
    assert "python -m agelib.model.imagenet" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_s_weights_are_those_of_the_network(tmp_path):
    keras.utils.set_random_seed(5)
    other = make_backbone("EfficientNetLite1", 32)
    arrays = {str(i): each.astype(np.float16) for i, each in enumerate(other.get_weights())}
    np.savez(tmp_path / "lite1.npz", **arrays)
    found = make_backbone("EfficientNetLite1", 32, str(tmp_path / "lite1.npz"))
    for one, half in zip(found.get_weights(), arrays.values(), strict=True):
        np.testing.assert_array_equal(one, half.astype(np.float32))


@pytest.mark.parametrize("backbone", ["EfficientNetLite0", "EfficientNetB0"])
@pytest.mark.parametrize("kind", ["missing", "text", "one array", "named", "of another"])
def test_other_npz_files_are_refused(tmp_path, backbone, kind):
    path = tmp_path / "weights.npz"
    if kind == "text":
        path.write_text("no weights")
    elif kind == "of another":
        path = LITE0_WEIGHTS
        backbone = backbone.replace("Lite0", "Lite1")
    elif kind != "missing":
        np.savez(path, **{"named" if kind == "named" else "0": np.zeros(3)})
    with pytest.raises(AgelibError, match=f"weights for {backbone} are not available") as caught:
        make_backbone(backbone, 32, str(path))
    assert "network and" not in str(caught.value)
    assert "\n" not in str(caught.value)


# Weights of keras.applications


def like_imagenet(name, size, images):
    """Returns a `keras.applications` network with weights of which each one counts."""
    rng = np.random.default_rng(3)
    network = getattr(keras.applications, name)(
        include_top=False, weights=None, input_shape=(size, size, 3)
    )
    norms = []
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.load_own_variables({"0": MEAN, "1": STD**2, "2": 0})
        elif isinstance(layer, keras.layers.Dropout):
            layer.rate = 0
        elif isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0
            norms.append(layer)
    # One step takes over these images' own statistics, which keeps the signal alive at any depth.
    network(images, training=True)
    for norm in norms:
        gamma, beta, mean, variance = norm.get_weights()
        gamma, beta = rng.uniform(0.8, 1.2, gamma.shape), rng.normal(0, 0.1, beta.shape)
        # No channel is so faint that it makes rounding errors loud.
        norm.set_weights([gamma, beta, mean, np.maximum(variance, variance.mean())])
    return network


def network_of(name, *marks):
    return pytest.param(name, marks=marks, id=name[-2:])


@pytest.mark.parametrize(
    "name",
    [
        network_of("EfficientNetB0"),
        *(network_of(f"EfficientNetB{i}", pytest.mark.slow) for i in range(1, 8)),
    ],
)
def test_imagenet_weights_give_the_features_of_keras_applications(name, monkeypatch):
    size = 64 if name < "EfficientNetB5" else 32
    coarse = np.random.default_rng(4).integers(0, 256, (8, 8, 8, 3), np.uint8)
    images = np.stack([cv2.resize(image, (size, size)) for image in coarse])
    original, asked = like_imagenet(name, size, images.astype(np.float32)), []

    def stand_in(include_top, weights, input_shape):
        asked.append((include_top, weights, input_shape))
        return original

    monkeypatch.setattr(keras.applications, name, stand_in)
    model = build_model(name, size, "imagenet", augment=False)
    assert asked == [(False, "imagenet", (size, size, 3))]
    features = keras.Model(model.input, model.get_layer("pooling").input)
    expected = eager(original, images)
    found = eager(features, images)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-4 * scale)
    # What a mistake as small as swapped colours does to them.
    swapped = eager(features, images[..., ::-1])
    assert np.abs(swapped - expected).max() > 0.01 * scale


# Where weights come from


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("weights", ["imagenet", "noisy-student"])
def test_weights_out_of_reach_are_one_sentence_with_a_way_out(weights):
    with pytest.raises(AgelibError) as caught:
        build_model("EfficientNetB0", 32, weights)
    message = str(caught.value)
    assert message.startswith(f"{weights} weights for EfficientNetB0 are not available")
    assert "--weights none" in message
    assert "\n" not in message
    assert len(message) < 500


def test_trouble_without_weights_is_not_blamed_on_them(monkeypatch):
    monkeypatch.setattr(keras.models, "clone_model", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_backbone("EfficientNetB0", 32)


def test_a_misspelt_kind_of_weights_is_one_sentence():
    with pytest.raises(AgelibError, match="imagnet weights for EfficientNetB0 are not available"):
        build_model("EfficientNetB0", 32, "imagnet")


@pytest.mark.filterwarnings("ignore:.*HDF5 file")
def test_weights_from_an_h5_file_and_from_noisy_student_are_taken_over(tmp_path, monkeypatch):
    keras.utils.set_random_seed(5)
    other = make_backbone("EfficientNetB0", 32)
    path = tmp_path / "efficientnet-b0_noisy-student_notop.h5"
    other.save(path)
    assert equal_weights(make_backbone("EfficientNetB0", 64, str(path)), other)
    asked = []

    def get_file(name, origin, **options):
        asked.append((name, origin))
        return str(path)

    monkeypatch.setattr(tf.keras.utils, "get_file", get_file)
    assert equal_weights(make_backbone("EfficientNetB0", 32, "noisy-student"), other)
    [(name, origin)] = asked
    assert name == path.name
    assert origin.startswith("https://github.com/qubvel/efficientnet/releases/download/v0.0.1/")


@pytest.mark.filterwarnings("ignore:.*HDF5 file")
def test_h5_weights_of_another_backbone_are_refused(tmp_path):
    path = tmp_path / "b0.h5"
    make_backbone("EfficientNetB0", 32).save(path)
    with pytest.raises(AgelibError, match="weights for EfficientNetB1 are not available"):
        make_backbone("EfficientNetB1", 32, str(path))
