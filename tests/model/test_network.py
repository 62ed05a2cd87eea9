import json
import zipfile

import numpy as np
import pytest
from conftest import equal_weights

from agelib import AgelibError
from agelib.backend import keras
from agelib.labels import AGE_BRANCHES
from agelib.model.network import (
    PRETRAINED,
    build_model,
    freeze_backbone,
    load_model,
    save_model,
    scale_logits,
    unfreeze_backbone,
)
from agelib.release import deflate

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
HEADS = {"age": 85, "age_branch": 5, "gender": 2}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    return build_model("EfficientNetB0", 64)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(2).integers(0, 256, (5, 64, 64, 3), np.uint8)


@pytest.fixture
def tiny():
    """Quick to save and to load."""
    inputs = keras.Input((8,), name="image")
    return keras.Model(inputs, {"age": keras.layers.Dense(3, name="age")(inputs)})


@pytest.fixture
def saved(tiny, tmp_path):
    save_model(tiny, tmp_path / "model.keras", {"crop": {"crop_size": 64}})
    return tmp_path / "model.keras"


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


def test_a_temperature_reaches_every_output_of_its_head(images):
    model = build_model("EfficientNetB0", 64)
    before = model.predict_on_batch(images)
    scale_logits(model, "age", 2)
    after = model.predict_on_batch(images)
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


def test_a_frozen_backbone_leaves_the_heads_and_thaws_without_its_batch_norm():
    model = build_model("EfficientNetB0", 32)
    everything = {weights.path for weights in model.trainable_weights}
    freeze_backbone(model)
    heads = {weights.path for weights in model.trainable_weights}
    assert {path.split("/")[0] for path in heads} == {"age_logits", "gender_logits"}
    unfreeze_backbone(model)
    left_out = everything - {weights.path for weights in model.trainable_weights}
    assert {path.split("/")[-1] for path in left_out} == {"gamma", "beta"}
    assert len(left_out) == 2 * 49


# Weights of another model


def test_a_model_of_ours_gives_its_weights_to_another(model, images, tmp_path):
    path = tmp_path / "model.keras"
    save_model(model, path, {})
    other = build_model("EfficientNetB0", 64, str(path))
    expected, found = model.predict_on_batch(images), other.predict_on_batch(images)
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


# The file


def test_the_note_comes_back_as_it_was(tiny, tmp_path):
    note = {"crop": {"margin": 0.3}, "history": [{"epoch": 1, "loss": 0.1 + 0.2}], "text": "é"}
    save_model(tiny, tmp_path / "model.keras", note)
    loaded, found = load_model(tmp_path / "model.keras")
    assert found == note
    assert equal_weights(loaded, tiny)


def settings_of(path):
    """Returns the names of all settings in a model's file."""

    def walk(config):
        if isinstance(config, list):
            return {name for each in config for name in walk(each)}
        if isinstance(config, dict):
            return set(config).union(*map(walk, config.values()))
        return set()

    with zipfile.ZipFile(path) as archive:
        return walk(json.loads(archive.read("config.json")))


@pytest.mark.parametrize("shipped", [True, False])
def test_keras_of_colab_knows_every_setting_in_the_file(shipped, tmp_path):
    # Keras 3.13 raises TypeError for those that 3.14 and 3.15 brought.
    path = PRETRAINED
    if not shipped:
        path = tmp_path / "model.keras"
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.BatchNormalization()(inputs)
        x = keras.layers.Conv2D(2, 3, kernel_initializer=keras.initializers.HeNormal())(x)
        save_model(keras.Model(inputs, x), path, {})
    later = {"input_axes", "output_axes", "renorm", "renorm_clipping", "renorm_momentum"}
    assert not settings_of(path) & later


def test_a_later_setting_that_matters_stays(tmp_path):
    inputs = keras.Input((8, 8, 3))
    config = keras.layers.BatchNormalization().get_config()
    if "renorm" not in config:
        pytest.skip("this Keras has no renorm")
    layer = keras.layers.BatchNormalization.from_config(config | {"renorm": True})
    save_model(keras.Model(inputs, layer(inputs)), tmp_path / "model.keras", {})
    assert "renorm" in settings_of(tmp_path / "model.keras")
    assert load_model(tmp_path / "model.keras")[0].layers[1].renorm


def test_a_model_is_replaced_as_a_whole(tiny, saved):
    tiny.set_weights([np.full_like(weights, 7) for weights in tiny.get_weights()])
    save_model(tiny, saved, {"second": True})
    loaded, note = load_model(saved)
    assert note == {"second": True}
    assert equal_weights(loaded, tiny)
    assert [path.name for path in saved.parent.iterdir()] == ["model.keras"]


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(tiny, saved, error, monkeypatch):
    before = saved.read_bytes()

    def cut_short(path, *arguments, **options):
        path.write_bytes(b"half a model")
        raise error

    monkeypatch.setattr(tiny, "save", cut_short)
    with pytest.raises(type(error)):
        save_model(tiny, saved, {})
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["model.keras"]


def test_a_missing_model_is_asked_for(tmp_path):
    with pytest.raises(AgelibError, match=r"model\.keras is missing: run the train step"):
        load_model(tmp_path / "model.keras")


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.999])
def test_a_model_cut_short_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(AgelibError, match="is no model of agelib's"):
        load_model(saved)


@pytest.mark.parametrize("member", ["config.json", "metadata.json", "model.weights.h5"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_model_with_a_damaged_part_is_refused(saved, tmp_path, member, packed):
    if packed:
        deflate(saved, tmp_path / "packed.keras")
        saved = tmp_path / "packed.keras"
    with zipfile.ZipFile(saved) as archive:
        start = archive.getinfo(member).header_offset + 30 + len(member)
        size = archive.getinfo(member).compress_size
    content = bytearray(saved.read_bytes())
    for i in range(start + size // 3, start + size // 2):
        content[i] ^= 0xFF
    saved.write_bytes(content)
    with pytest.raises(AgelibError, match="is no model of agelib's"):
        load_model(saved)


def test_other_files_are_refused(tiny, tmp_path):
    (tmp_path / "text.keras").write_text("not a model")
    tiny.save(tmp_path / "foreign.keras")
    with zipfile.ZipFile(tmp_path / "zip.keras", "w") as archive:
        archive.writestr("agelib.json", "{}")
    for name in ("text", "foreign", "zip"):
        with pytest.raises(AgelibError, match=f"{name}.keras is no model of agelib's"):
            load_model(tmp_path / f"{name}.keras")


def test_a_package_without_its_model_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("agelib.model.network.PRETRAINED", tmp_path / "model.keras")
    with pytest.raises(AgelibError, match=r"model\.keras is missing: name another model"):
        load_model(tmp_path / "model.keras")
