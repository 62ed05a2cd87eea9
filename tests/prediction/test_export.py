import dataclasses
import json
import shutil
import textwrap

import numpy as np
import pytest
from conftest import build_tiny_model
from PIL import Image
from skimage import data

from agelib import AgelibError
from agelib.__main__ import _parser
from agelib.backend import keras, tf
from agelib.config import Config, Crop
from agelib.datasets import download, tables
from agelib.datasets.sample import draw_portrait
from agelib.evaluation.scores import metrics
from agelib.faces import cleaning
from agelib.faces.images import resize
from agelib.faces.shards import FaceSet
from agelib.labels import GENDERS
from agelib.model.inference import estimate, median_age
from agelib.model.saved import PRETRAINED, save_model
from agelib.prediction.estimator import Estimator
from agelib.prediction.export import (
    FORMATS,
    describe_input,
    export,
    faces_to_check,
    name_missing,
    readable,
)

CROP = Crop(64, 0.0)
BUILT_IN = ("saved_model", "tflite", "int8")


@pytest.fixture(scope="module")
def estimator(tmp_path_factory):
    keras.utils.set_random_seed(4)
    model = build_tiny_model("EfficientNetB0", 48, augment=False)
    # Wide enough apart that an answer is no tie.
    model.set_weights([3 * weights for weights in model.get_weights()])
    path = tmp_path_factory.mktemp("model") / "model.keras"
    save_model(model, path, {"crop": CROP.to_json()})
    return Estimator(path)


@pytest.fixture(scope="module")
def crops():
    rng = np.random.default_rng(0)
    return [draw_portrait(5 + 2 * i, i % 2, rng, 64) for i in range(40)]


@pytest.fixture(scope="module")
def exported(estimator, crops, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "new"
    return folder, export(estimator, folder, crops, BUILT_IN)


@pytest.fixture
def patched(monkeypatch):
    """Changes a format for the test."""

    def patch(name, **changes):
        monkeypatch.setitem(FORMATS, name, dataclasses.replace(FORMATS[name], **changes))

    return patch


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# What is written


def test_the_files_are_there_and_nothing_else(exported):
    folder, table = exported
    assert names(folder) == ["model.int8.tflite", "model.tflite", "saved_model"]
    assert table["format"].tolist() == ["Keras", "SavedModel", "TFLite", "TFLite int8"]
    assert set(table["problem"]) == {""}
    sizes = table.set_index("file")["megabytes"] * 1e6
    for name in ("model.tflite", "model.int8.tflite"):
        assert round(sizes[name]) == (folder / name).stat().st_size
    assert sizes["model.int8.tflite"] < 0.6 * sizes["model.tflite"]


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("count", [1, 7])
def test_each_runtime_takes_any_number_of_pixels_of_0_to_255(
    exported, estimator, crops, name, count
):
    folder, _ = exported
    images = np.float32([Image.fromarray(crop).resize((48, 48)) for crop in crops[:count]])
    expected = estimator.model.predict_on_batch(images)
    found = FORMATS[name].load(folder / FORMATS[name].file)(images)
    assert set(found) == {"age", "age_branch", "gender"}
    for head, values in expected.items():
        assert found[head].shape == values.shape
        np.testing.assert_allclose(found[head], values, atol=0.05 if name == "int8" else 1e-5)


def test_onnx_answers_as_keras_does(estimator, crops, tmp_path):
    for package in FORMATS["onnx"].packages:
        pytest.importorskip(package, reason="of the optional extra `export`")
    table = export(estimator, tmp_path, crops, ["onnx"])
    assert table["problem"].tolist() == ["", ""]
    assert table["largest_difference"][1] < 1e-5
    assert names(tmp_path) == ["model.onnx"]
    import onnx

    graph = onnx.load(tmp_path / "model.onnx").graph
    for tensor in (*graph.input, *graph.output):
        assert tensor.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_table_holds_what_was_measured(exported):
    _, table = exported
    exact = table[table["format"] != "TFLite int8"]
    assert (exact["largest_difference"] < 1e-5).all()
    assert (exact["years"] < 1e-3).all()
    int8 = table.iloc[-1]
    assert 1e-5 < int8["largest_difference"] < 0.05
    assert 0 < int8["years"] <= 0.5
    assert (table[["same_branch", "same_gender"]] >= 0.95).all(axis=None)
    assert (table["milliseconds"] > 0).all()


def test_the_table_is_read_without_what_is_not_there(exported):
    _, table = exported
    text = readable(table.assign(problem=["", "", "", "no"]))
    assert text.index.tolist() == ["Keras", "SavedModel", "TFLite"]
    assert text["same branch"].tolist() == ["100.0%"] * 3


def test_exporting_again_replaces_what_was_there(estimator, crops, tmp_path):
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model" / "old.pb").write_bytes(b"old")
    (tmp_path / "model.tflite").write_bytes(b"old")
    export(estimator, tmp_path, crops, ["saved_model", "tflite"])
    assert names(tmp_path) == ["model.tflite", "saved_model"]
    assert not (tmp_path / "saved_model" / "old.pb").exists()
    assert (tmp_path / "model.tflite").stat().st_size > 3


def test_nothing_of_the_converters_reaches_the_terminal(estimator, crops, tmp_path, capfd):
    export(estimator, tmp_path, crops, BUILT_IN)
    output = capfd.readouterr()
    assert output.out == ""
    assert all(
        line.startswith("export:") for line in output.err.replace("\r", "\n").split("\n") if line
    )


# What goes wrong


def changed(name, change):
    """Returns a loader whose model's answers are changed."""
    load_plainly = FORMATS[name].load

    def load(path):
        run = load_plainly(path)
        return lambda images: {head: change(head, values) for head, values in run(images).items()}

    return load


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("tflite", lambda head, values: values * 1.1, "a probability differs from Keras' by 0"),
        (
            "tflite",
            lambda head, values: values * np.nan,
            "a probability differs from Keras' by nan",
        ),
        ("int8", lambda head, values: values[:, ::-1], "of the faces get another branch or gender"),
        ("int8", lambda head, values: values * (head == "gender"), "ages differ from Keras' by"),
    ],
)
def test_a_file_that_answers_otherwise_is_not_kept(
    estimator, crops, tmp_path, patched, name, change, problem
):
    patched(name, load=changed(name, change))
    table = export(estimator, tmp_path, crops, [name, "saved_model"])
    assert names(tmp_path) == ["saved_model"]
    _, bad, good = table["problem"]
    assert bad.startswith(f"{FORMATS[name].file} has not been written: ")
    assert problem in bad
    assert good == ""


def test_a_missing_package_is_named_and_the_others_are_written(estimator, crops, tmp_path, patched):
    patched("onnx", packages=("numpy", "no_such_package"))
    table = export(estimator, tmp_path, crops, ["onnx", "tflite"])
    assert table["problem"][1].endswith("ONNX takes more packages: pip install no_such_package")
    assert names(tmp_path) == ["model.tflite"]
    assert readable(table).index.tolist() == ["Keras", "TFLite"]


def test_without_the_packages_of_a_format_the_others_are_written(
    estimator, crops, tmp_path, patched
):
    patched("onnx", packages=("no_such_package",))
    table = export(estimator, tmp_path, crops[:2])
    assert table["format"].tolist() == ["Keras", "SavedModel", "TFLite", "TFLite int8"]
    assert name_missing() == "ONNX takes more packages: pip install no_such_package."


def test_the_example_for_users_runs_as_it_is_shown(
    exported, estimator, crops, tmp_path, monkeypatch, capsys
):
    text = describe_input(estimator)
    assert "float32 of shape (batch, 48, 48, 3), RGB, 0 to 255" in text
    shutil.copy(exported[0] / "model.tflite", tmp_path)
    Image.fromarray(crops[0]).save(tmp_path / "crop.png")
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(text[text.index("  import numpy") :]), {})
    age, gender = capsys.readouterr().out.splitlines()
    image = np.float32(Image.fromarray(crops[0]).resize((48, 48)))
    outputs = estimator.model.predict_on_batch(np.stack([image, image[:, ::-1]]))
    assert age == f"age: {median_age(outputs['age'].mean(axis=0, keepdims=True))[0]}"
    assert gender == f"gender: {GENDERS[outputs['gender'].mean(axis=0).argmax()]}"


def test_a_converter_that_fails_leaves_the_file_of_before(estimator, crops, tmp_path, patched):
    def fail(model, path):
        path.write_bytes(b"half")
        raise RuntimeError("no such operation\nand pages of it")

    patched("tflite", write=fail)
    (tmp_path / "model.tflite").write_bytes(b"before")
    table = export(estimator, tmp_path, crops, ["tflite"])
    assert table["problem"][1].endswith("has not been written: no such operation")
    assert (tmp_path / "model.tflite").read_bytes() == b"before"
    assert names(tmp_path) == ["model.tflite"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"formats": ["coreml"]}, "format is 'coreml', but must be one of saved_model, tflite"),
        ({"crops": []}, "There is no face"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(estimator, crops, tmp_path, arguments, sentence):
    arguments = {"estimator": estimator, "folder": tmp_path, "crops": crops} | arguments
    with pytest.raises(AgelibError, match=sentence):
        export(**arguments)
    assert names(tmp_path) == []


def test_a_file_in_place_of_the_folder_is_named(estimator, crops, tmp_path):
    (tmp_path / "taken").write_bytes(b"")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(AgelibError, match="is no folder and cannot be made one"):
            export(estimator, folder, crops)


# Which faces


def test_the_run_s_test_faces_are_compared(sample_faces):
    crops, what = faces_to_check(sample_faces, CROP)
    faces = FaceSet([sample_faces.faces / "utkface"], "test")
    assert len(crops) == len(faces)
    np.testing.assert_array_equal(crops[5], faces.image(5))
    assert what == f"test faces of utkface ({len(faces)})"


def test_of_many_faces_some_from_everywhere_are_compared(sample_faces, monkeypatch):
    monkeypatch.setattr("agelib.prediction.export._MOST_FACES", 3)
    crops, what = faces_to_check(sample_faces, CROP)
    faces = FaceSet([sample_faces.faces / "utkface"], "test")
    assert what.startswith("test faces")
    assert what.endswith("(3)")
    np.testing.assert_array_equal(crops[0], faces.image(0))
    np.testing.assert_array_equal(crops[-1], faces.image(len(faces) - 1))


@pytest.mark.parametrize("crop", [CROP, Crop(80, 0.0)])
def test_without_such_faces_small_photos_of_people_are_compared(sample_faces, tmp_path, crop):
    here = crop != CROP
    config = sample_faces if here else dataclasses.replace(sample_faces, data=tmp_path)
    crops, what = faces_to_check(config, crop)
    assert [found.shape for found in crops] == [(25, 25, 3)] * 100
    assert {found.dtype for found in crops} == {np.dtype(np.uint8)}
    assert what == "small faces of Labeled Faces in the Wild (100)"


def test_without_test_faces_the_run_s_validation_faces_are_compared(sample_faces):
    config = dataclasses.replace(sample_faces, test_sources=("appa-real",))
    crops, what = faces_to_check(config, CROP)
    assert what == f"val faces of wiki ({len(crops)})"


def test_a_set_without_the_split_is_passed_over(sample_faces):
    # WIKI is trained on, so no face of it is a test face.
    config = dataclasses.replace(sample_faces, test_sources=("wiki",), train_sources=("utkface",))
    _, what = faces_to_check(config, CROP)
    assert what == "small faces of Labeled Faces in the Wild (100)"


def test_photos_give_the_face_that_each_is_about(sample_faces, tmp_path):
    Image.fromarray(data.astronaut()).save(tmp_path / "astronaut.png")
    Image.fromarray(np.full((90, 90, 3), 99, np.uint8)).save(tmp_path / "wall.png")
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    crops, what = faces_to_check(sample_faces, CROP, tmp_path)
    assert [crop.shape for crop in crops] == [(64, 64, 3)]
    assert what == f"faces in the photos of {tmp_path}, of 3 (1)"


def test_photos_without_a_face_are_one_sentence(sample_faces, tmp_path):
    Image.fromarray(np.full((90, 90, 3), 99, np.uint8)).save(tmp_path / "wall.png")
    with pytest.raises(AgelibError, match="holds no photo with a face that can be used"):
        faces_to_check(sample_faces, CROP, tmp_path)


# The model that comes with agelib


@pytest.mark.slow
def test_int8_answers_alike_on_every_processor(tmp_path):
    estimator = Estimator()
    crops, what = faces_to_check(Config(data=tmp_path), estimator.crop)
    assert what.startswith("small faces")
    table = export(estimator, tmp_path, crops, ["int8"])
    assert table["problem"].tolist() == ["", ""]
    images = np.float32([resize(crop, estimator.model.input_shape[1:3]) for crop in crops])
    kernels = tf.lite.experimental.OpResolverType
    fast, plain = [
        tf.lite.Interpreter(
            model_content=(tmp_path / "model.int8.tflite").read_bytes(),
            experimental_op_resolver_type=each,
        ).get_signature_runner()(image=images)
        for each in (kernels.AUTO, kernels.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    ]
    for head, values in fast.items():
        np.testing.assert_allclose(plain[head], values, atol=1e-4)


@pytest.mark.real
@pytest.mark.slow
def test_int8_loses_at_most_a_point_on_real_faces(mirror, tmp_path):
    settings = json.loads(PRETRAINED.with_name("card.json").read_text())["note"]["config"]
    config = Config(**settings, data=tmp_path)
    download.fetch("utkface", config)
    images = download.extract("utkface", config)
    table = tables.read_table("utkface", config)
    held_out = table[(table["split"] == "test") & (table["reject"] == "")]
    cleaning.clean_table(held_out.iloc[::2], images, config.faces / "utkface", "utkface", config)
    faces = FaceSet([config.faces / "utkface"], "test")
    estimator = Estimator()
    known, what = faces_to_check(config, estimator.crop)
    assert what.startswith("test faces of utkface")
    assert export(estimator, tmp_path, known, ["int8"])["problem"].tolist() == ["", ""]
    run = FORMATS["int8"].load(tmp_path / "model.int8.tflite")
    size = estimator.model.input_shape[1:3]
    crops = np.float32([resize(faces.image(i), size) for i in range(len(faces))])
    views = [run(images) for images in (crops, crops[:, :, ::-1])]
    quantised = {name: np.mean([view[name] for view in views], axis=0) for name in views[0]}
    before, after = metrics(faces, estimate(estimator.model, faces)), metrics(faces, quantised)
    for head in ("age_branch", "gender"):
        assert after[f"{head}_accuracy"] >= before[f"{head}_accuracy"] - 0.01


def test_the_command_knows_every_format():
    options = _parser().parse_args(["export", "--output", "out", "--formats", *FORMATS])
    assert options.formats == list(FORMATS)
    for name in ("", "gguf"):
        with pytest.raises(SystemExit):
            _parser().parse_args(["export", "--output", "out", "--formats", name])
