import dataclasses
import json
import re
import shlex
import shutil
import zipfile

import numpy as np
import pytest
from skimage import data

from agelib import AgelibError, release
from agelib.config import Config
from agelib.evaluation.evaluate import score_split
from agelib.evaluation.tables import (
    calibration_table,
    compare_table,
    groups_table,
    recall_table,
    results_table,
)
from agelib.faces.shards import FaceSet, read_manifest
from agelib.files import sha256
from agelib.model.inference import estimate
from agelib.model.saved import PRETRAINED, load_model, save_model
from agelib.prediction.estimator import Estimator
from agelib.release import card_text, ship, train_command


@pytest.fixture(scope="module")
def shipped(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("shipped") / "pretrained" / "model.keras"
    return path, ship(trained, path)


@pytest.fixture
def trained_alone(trained, tmp_path):
    """The trained run in a folder of the test's own."""
    shutil.copytree(trained.folder, tmp_path / "data" / "sample")
    return dataclasses.replace(trained, data=tmp_path / "data")


def test_the_model_takes_less_space_and_says_the_same(trained, shipped):
    path, _ = shipped
    original = trained.run_folder / "model.keras"
    assert path.stat().st_size < 0.8 * original.stat().st_size
    (before, noted), (after, note) = load_model(original), load_model(path)
    assert note == noted
    faces = FaceSet([trained.faces / "utkface"], "test")
    expected, outputs = estimate(before, faces), estimate(after, faces)
    for name, values in expected.items():
        np.testing.assert_allclose(outputs[name], values, atol=2e-3)


def test_its_weights_fit_into_16_bits_and_no_file_in_it_is_lost(trained, shipped):
    path, _ = shipped
    model, _ = load_model(path)
    for weights in model.get_weights():
        np.testing.assert_array_equal(weights, weights.astype(np.float16))
    names = [zipfile.ZipFile(p).namelist() for p in (path, trained.run_folder / "model.keras")]
    assert sorted(names[0]) == sorted(names[1])
    assert {p.name for p in path.parent.iterdir()} == {"model.keras", "card.json", "README.md"}


def test_the_card_is_of_the_very_file(trained, shipped):
    path, card = shipped
    assert json.loads(path.with_name("card.json").read_text()) == card
    assert (card["sha256"], card["bytes"]) == (sha256(path), path.stat().st_size)
    assert card["data"]["wiki"]["faces"] == read_manifest(trained.faces / "wiki")["splits"]
    assert card["data"]["wiki"]["licence"] == "academic research only"
    assert card["note"]["config"] == trained.to_dict()
    faces = FaceSet([trained.faces / "utkface"], "test")
    assert card["scores"]["test"] == score_split(faces, estimate(load_model(path)[0], faces))


def test_the_card_is_a_page_with_all_scores_of_each_test_set(trained, shipped):
    path, card = shipped
    page = path.with_name("README.md").read_text(encoding="utf-8")
    assert page == card_text(json.loads(path.with_name("card.json").read_text()))
    for scores in card["tests"].values():
        tables = (results_table, calibration_table, recall_table, groups_table)
        for figure in np.concatenate([table(scores).to_numpy().ravel() for table in tables]):
            assert f"| {figure} |" in page
    assert train_command(trained.to_dict()) in page.replace(" \\\n ", "")
    for line in (card["sha256"], "academic research only", "Apache 2.0"):
        assert line in page


def test_the_card_begins_with_what_a_reader_wants_to_know_first(shipped):
    page = shipped[0].with_name("README.md").read_text(encoding="utf-8")
    titles = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert titles == [
        "How to use it",
        "How good it is",
        "What it must not be used for",
        "Data and licences",
        "Input and output",
        "How it was made",
        "All scores",
    ]
    use, scores = page.index("python -m agelib predict photo.jpg"), page.index("| GENDER accuracy")
    assert use < scores < page.index("python -m agelib run")


def test_every_score_that_the_card_explains_is_in_its_tables(shipped):
    page = shipped[0].with_name("README.md").read_text(encoding="utf-8")
    explained, tables = page.split("## All scores")[1].split("\n| ", 1)
    words = re.findall(r"^- .*?\*([\w% ]+)\*", explained, re.MULTILINE)
    assert len(words) == 5
    for word in words:
        assert word.lower() in tables.lower()


def test_no_line_of_code_in_the_card_is_longer_than_a_checksum(shipped):
    page = shipped[0].with_name("README.md").read_text(encoding="utf-8")
    for block in page.split("```")[1::2]:
        assert max(map(len, block.splitlines())) <= 64


def test_a_run_can_be_tested_on_several_sets(trained_alone, tmp_path):
    shutil.copytree(trained_alone.faces / "utkface", trained_alone.faces / "again")
    config = dataclasses.replace(trained_alone, test_sources=("utkface", "again"))
    card = ship(config, tmp_path / "model.keras")
    assert card["scores"]["test"] == card["tests"]["again"] == card["tests"]["utkface"]
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| score | again | utkface |" in page


@pytest.fixture
def begun_with(trained_alone):
    """Notes that the run began with a model, which was trained as these settings say."""

    def note_start(**learned):
        path, start = trained_alone.run_folder / "model.keras", trained_alone.folder / "a.keras"
        model, note = load_model(path)
        del note["before"]  # as in the runs of earlier versions
        earlier = {"config": note["config"] | {"run": "first"} | learned, "seconds": 3600.0}
        save_model(model, start, note | earlier)
        save_model(model, path, note | {"config": note["config"] | {"weights": str(start)}})
        return dataclasses.replace(trained_alone.resolved, weights=str(start))

    return note_start


def test_the_card_has_the_runs_that_a_run_began_with(begun_with, tmp_path):
    card = ship(begun_with(seed=5), tmp_path / "model.keras")
    [first] = card["before"]
    assert (first["config"]["seed"], first["seconds"]) == (5, 3600.0)
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert page.index("--seed 5") < page.index("a.keras")


def test_the_card_says_how_many_models_were_teachers(trained_alone, tmp_path):
    path, name = trained_alone.run_folder / "model.keras", "data/runs/first/model.keras"
    model, note = load_model(path)
    first = {"config": note["config"] | {"seed": 5}, "seconds": 3600.0}
    taught = note["config"] | {"teachers": [name]}
    save_model(model, path, note | {"config": taught, "before": [first]})
    card = ship(dataclasses.replace(trained_alone, teachers=(name,)), tmp_path / "model.keras")
    assert card["before"] == [first]
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "learned from the labels and from what another model answers" in page
    assert page.index("--seed 5") < page.index(f"--teachers {name}")


def test_a_setting_with_many_values_takes_several_lines_of_the_card(card):
    names = [f"{i}/my drive/{'all my models ' * i}/model.keras" for i in range(4)]
    taught = card["note"] | {"config": card["note"]["config"] | {"teachers": names}}
    page = card_text(card | {"note": taught, "before": []})
    command = page.split("```")[-4]
    assert len(command.splitlines()) > 8
    assert shlex.split(command.replace("\\\n", "")) == shlex.split(train_command(taught["config"]))


def test_a_run_that_began_with_its_test_faces_is_refused(begun_with, shipped_before):
    config = begun_with(train_sources=["wiki", "utkface"])
    with pytest.raises(
        AgelibError, match="or learned from a model that was trained on test faces of u"
    ):
        ship(config, shipped_before)


def test_the_card_s_command_has_the_run_s_settings():
    given = {
        "train_sources": ("wiki", "aaf"),
        "crop_size": 96,
        "learning_rate": 1e-3,
        "align": True,
        "keep_near_duplicates": True,
        "run": "faces 96",
    }
    command = train_command(Config.from_profile("wiki", **given).resolved.to_dict())
    assert command == (
        "python -m agelib run --profile wiki --train-sources wiki aaf --crop-size 96 --align "
        "--keep-near-duplicates --learning-rate 0.001 --run 'faces 96'"
    )
    # The rate that follows from the profile's batch size follows no longer from this one.
    rate = Config.from_profile("wiki").resolved.learning_rate
    larger = Config.from_profile("wiki", batch_size=256, learning_rate=rate).to_dict()
    assert train_command(larger).endswith(f"--batch-size 256 --learning-rate {rate}")
    from_scratch = Config.from_profile("wiki", weights="none").resolved.to_dict()
    assert train_command(from_scratch) == "python -m agelib run --profile wiki --weights none"


def test_a_run_that_notes_fewer_settings_is_shipped(trained_alone, tmp_path):
    path = trained_alone.run_folder / "model.keras"
    model, note = load_model(path)
    del note["config"]["keep_near_duplicates"]
    save_model(model, path, note)
    other = dataclasses.replace(trained_alone, run="renamed")
    trained_alone.run_folder.rename(other.run_folder)
    assert ship(other, tmp_path / "model.keras")["note"] == note


def test_photos_are_judged_by_it(shipped):
    path, _ = shipped
    assert len(Estimator(path).predict(data.astronaut())) == 1


@pytest.fixture
def shipped_before(tmp_path):
    """What an earlier shipping left."""
    files = {"model.keras": b"model", "card.json": b"{}"}
    (tmp_path / "pretrained").mkdir()
    for name, content in files.items():
        (tmp_path / "pretrained" / name).write_bytes(content)
    yield tmp_path / "pretrained" / "model.keras"
    assert {p.name: p.read_bytes() for p in (tmp_path / "pretrained").iterdir()} == files


def test_a_run_without_a_model_leaves_what_was_shipped(own_faces, shipped_before):
    with pytest.raises(AgelibError, match=r"model\.keras is missing: run the train step"):
        ship(own_faces, shipped_before)


def test_a_run_without_its_faces_leaves_what_was_shipped(trained_alone, shipped_before):
    shutil.rmtree(trained_alone.faces / "utkface")
    with pytest.raises(AgelibError, match="run the clean step"):
        ship(trained_alone, shipped_before)


def test_a_run_is_not_shipped_with_scores_on_other_faces(trained_alone, shipped_before):
    path = trained_alone.faces / "wiki" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["shards"]["val-00000"], manifest["splits"]["val"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(AgelibError, match="trained on other faces than wiki"):
        ship(trained_alone, shipped_before)


def test_faces_of_another_crop_are_refused(trained_alone, shipped_before):
    path = trained_alone.faces / "utkface" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["crop"]["margin"] = 0.9
    path.write_text(json.dumps(manifest))
    with pytest.raises(AgelibError, match=r"utkface holds crops of .*0\.9.*clean again"):
        ship(trained_alone, shipped_before)


def test_settings_that_are_not_the_run_s_are_refused(trained_alone, shipped_before):
    other = dataclasses.replace(trained_alone, seed=7)
    with pytest.raises(AgelibError, match="trained with seed 0, but 7 is asked for"):
        ship(other, shipped_before)


def test_a_run_that_does_not_say_how_it_was_made_is_refused(trained_alone, shipped_before):
    path = trained_alone.run_folder / "model.keras"
    model, note = load_model(path)
    del note["seconds"]
    save_model(model, path, note)
    with pytest.raises(AgelibError, match="does not note all that the card says"):
        ship(trained_alone, shipped_before)


def test_a_weight_beyond_16_bits_is_refused(trained_alone, shipped_before):
    path = trained_alone.run_folder / "model.keras"
    model, note = load_model(path)
    weights = model.get_weights()
    weights[0].flat[0] = 7e4
    model.set_weights(weights)
    save_model(model, path, note)
    with pytest.raises(AgelibError, match="65504"):
        ship(trained_alone, shipped_before)


# What has been shipped


@pytest.fixture(scope="module")
def card():
    return json.loads(PRETRAINED.with_name("card.json").read_text())


def test_the_shipped_card_is_of_the_shipped_model(card):
    assert (card["sha256"], card["bytes"]) == (sha256(PRETRAINED), PRETRAINED.stat().st_size)
    assert card["bytes"] <= 20_000_000
    assert load_model(PRETRAINED)[1] == card["note"]
    assert not re.search(r"/(tmp|home|root|work|Users)/", json.dumps(card))


def test_own_photos_are_cut_out_as_the_shipped_model_needs_them():
    assert Config.from_profile("own").crop == Estimator().crop


def test_the_shipped_model_does_not_claim_more_than_it_knows_of_a_face_it_has_not_seen():
    [estimate] = Estimator().predict(data.astronaut())
    low, high = estimate.interval
    assert low <= 41 <= high  # as the portrait's mission badge says
    assert abs(estimate.age - 41) < 10 or estimate.branches.max() < 0.6


def test_the_shipped_model_knows_the_gender_of_a_face_it_has_not_seen():
    [estimate] = Estimator().predict(data.astronaut())
    assert estimate.gender == "Female"


def test_the_readme_repeats_the_card(card):
    readme = (PRETRAINED.parents[2] / "README.md").read_text(encoding="utf-8")
    scores = compare_table(card["tests"])
    rows = [line.strip("| ").split(" | ") for line in readme.splitlines() if line[:2] == "| "]
    repeated = {name: figures for name, *figures in rows if name in scores.index}
    assert len(repeated) == 6
    for name, figures in repeated.items():
        assert figures == scores.loc[name].tolist()


def test_the_cards_page_is_written_from_the_card(card):
    page = PRETRAINED.with_name("README.md").read_text(encoding="utf-8")
    assert page == release.card_text(card)


@pytest.fixture
def copy(tmp_path):
    for path in release.files_with_address():
        target = tmp_path / path.relative_to(release.ROOT)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    return tmp_path


def test_every_file_with_the_address_agrees():
    name = release.read_address().removeprefix("https://github.com/")
    for path in release.files_with_address():
        assert name in path.read_text(encoding="utf-8"), path.name


def test_every_badge_opens_its_own_notebook():
    name = release.read_address().removeprefix("https://github.com/")
    for path in release.ROOT.glob("notebooks/*.ipynb"):
        badge = f"https://colab.research.google.com/github/{name}/blob/main/notebooks/{path.name}"
        assert badge in path.read_text(encoding="utf-8")


def test_every_setup_cell_clones_the_address():
    for path in release.ROOT.glob("notebooks/*.ipynb"):
        setup = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][2]["source"])
        assert f"git clone -q {release.read_address()})" in setup


def test_a_new_address_is_written_everywhere(copy):
    changed = release.write_address("https://github.com/some-one/faces.git", copy)
    assert changed == release.files_with_address(copy)
    assert release.read_address(copy) == "https://github.com/some-one/faces"
    old = release.read_address().removeprefix("https://github.com/")
    for path in changed:
        text = path.read_text(encoding="utf-8")
        assert old not in text
        assert "github.com/some-one/faces" in text


def test_the_address_can_be_written_back(copy):
    before = [path.read_bytes() for path in release.files_with_address(copy)]
    release.write_address("https://github.com/a/b", copy)
    release.write_address(release.read_address(), copy)
    assert [path.read_bytes() for path in release.files_with_address(copy)] == before


@pytest.mark.parametrize(
    "bad", ["github.com/a/b", "https://gitlab.com/a/b", "https://github.com/a"]
)
def test_an_address_that_colab_cannot_open_is_refused(copy, bad):
    with pytest.raises(AgelibError, match="not of the form"):
        release.write_address(bad, copy)
