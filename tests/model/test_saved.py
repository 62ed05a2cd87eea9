import json
import zipfile

import numpy as np
import pytest
from conftest import equal_weights

from agelib import AgelibError
from agelib.backend import keras
from agelib.model.saved import PRETRAINED, earlier_runs, load_model, save_model


@pytest.fixture
def tiny():
    """Quick to save and to load."""
    inputs = keras.Input((8,), name="image")
    return keras.Model(inputs, {"age": keras.layers.Dense(3, name="age")(inputs)})


@pytest.fixture
def saved(tiny, tmp_path):
    save_model(tiny, tmp_path / "model.keras", {"crop": {"crop_size": 64}})
    return tmp_path / "model.keras"


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


def test_a_run_can_begin_with_a_model_whose_own_beginning_is_lost(tiny, tmp_path):
    start = tmp_path / "start.keras"
    settings = {"weights": str(tmp_path / "lost.keras")}
    save_model(tiny, start, {"config": settings, "seconds": 5.0})  # as earlier versions wrote it
    runs = earlier_runs({"config": {"weights": str(start), "teachers": [str(start)]}})
    assert runs == [{"config": settings, "seconds": 5.0}]
    with pytest.raises(AgelibError, match=r"lost\.keras is missing"):
        earlier_runs({"config": settings})


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
def test_a_model_with_a_damaged_part_is_refused(tiny, saved, member, packed):
    if packed:
        save_model(tiny, saved, {}, zipfile.ZIP_DEFLATED)
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
    monkeypatch.setattr("agelib.model.saved.PRETRAINED", tmp_path / "model.keras")
    with pytest.raises(AgelibError, match=r"model\.keras is missing: name another model"):
        load_model(tmp_path / "model.keras")
