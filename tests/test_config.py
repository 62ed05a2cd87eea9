import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import agelib
from agelib import AgelibError
from agelib.config import PROFILES, Config, Crop

COMMON = {"test_sources": ("utkface",), "margin": 0.0, "val_fraction": 0.15}
PAPER = {"backbone": "EfficientNetB4", "weights": "imagenet", "crop_size": 160, "image_size": 160}
DESIGN = {
    "sample": COMMON
    | {"backbone": "EfficientNetB0", "weights": None, "crop_size": 64, "image_size": 64}
    | {"train_sources": ("wiki",), "run": "sample"},
    "wiki": COMMON | PAPER | {"train_sources": ("wiki",), "run": "wiki"},
    "imdb-wiki": COMMON | PAPER | {"train_sources": ("wiki", "imdb"), "run": "imdb-wiki"},
    "own": COMMON
    | {"backbone": "EfficientNetLite0", "weights": "agelib", "crop_size": 128, "image_size": 128}
    | {"margin": 0.1}
    | {"train_sources": ("own",), "test_sources": ("own",), "run": "own"},
}


@pytest.mark.parametrize("profile", DESIGN)
def test_profiles_are_the_designs(profile):
    config = Config.from_profile(profile).resolved
    assert {name: getattr(config, name) for name in DESIGN[profile]} == DESIGN[profile]
    assert config.profile == profile


def test_there_is_no_other_profile():
    assert set(PROFILES) == set(DESIGN)


def test_the_sample_is_the_default():
    assert Config.from_profile() == Config() == Config.from_profile("sample")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backbone", "EfficientNetB7"),
        ("crop_size", 96),
        ("margin", 0.0),
        ("val_fraction", 0.5),
        ("epochs", 40),
        ("run", "second"),
        ("weights", "noisy-student"),
        ("seed", 7),
    ],
)
def test_an_override_changes_its_own_field(name, value):
    profile = Config.from_profile("wiki").to_dict()
    follows = {"image_size": value} if name == "crop_size" else {}
    changed = Config.from_profile("wiki", **{name: value})
    assert changed.to_dict() == profile | {name: value} | follows


def test_none_keeps_the_profiles_value():
    config = Config.from_profile("wiki", weights=None, crop_size=None, run=None)
    assert config == Config.from_profile("wiki")


def test_weights_can_be_switched_off_by_name():
    assert Config.from_profile("wiki", weights="none").weights is None


def test_image_size_follows_crop_size_unless_given():
    assert Config.from_profile("wiki", crop_size=96).resolved.image_size == 96
    assert Config.from_profile("wiki", crop_size=96, image_size=56).image_size == 56


@pytest.mark.parametrize(
    ("weights", "epochs", "head_epochs"),
    [
        (None, 35, 0),
        ("imagenet", 35, 3),
        ("noisy-student", 2, 1),
        ("some.h5", 1, 0),
        ("model.keras", 35, 0),
    ],
)
def test_heads_learn_alone_where_they_are_new_and_the_backbone_is_not(weights, epochs, head_epochs):
    assert Config(weights=weights, epochs=epochs).resolved.head_epochs == head_epochs


@pytest.mark.parametrize("weights", [None, "model.keras"])
def test_heads_learn_alone_on_a_backbone_that_knows_something_else(weights):
    assert Config(weights="imagenet", epochs=9, head_epochs=5).head_epochs == 5
    with pytest.raises(
        AgelibError, match=r"^head_epochs is 5, but must be 0 unless weights are ImageNet's"
    ):
        Config(weights=weights, epochs=9, head_epochs=5)


def test_other_weights_bring_their_own_learning_rate():
    scratch = Config(weights="none")
    assert (
        dataclasses.replace(scratch, weights="imagenet").resolved
        == Config(weights="imagenet").resolved
    )


def test_the_learning_rate_grows_with_the_root_of_the_batch():
    assert Config(batch_size=32).resolved.learning_rate == pytest.approx(3e-3)
    assert Config(batch_size=128).resolved.learning_rate == pytest.approx(6e-3)
    assert Config(batch_size=128, weights="imagenet").resolved.learning_rate == pytest.approx(1e-3)
    assert Config(batch_size=128, learning_rate=0.02).learning_rate == 0.02


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("profile", "paper"),
        ("backbone", "EfficientNetB8"),
        ("backbone", "efficientnetb0"),
        ("teachers", ("model.h5",)),
        ("crop_size", 15),
        ("crop_size", 601),
        ("image_size", 31),
        ("image_size", 601),
        ("image_size", -64),
        ("margin", -0.1),
        ("margin", 2.1),
        ("margin", float("nan")),
        ("seed", -1),
        ("seed", 2**32),
        ("val_fraction", 0.0),
        ("val_fraction", 1.0),
        ("epochs", 0),
        ("batch_size", 1),
        ("batch_size", -1),
        ("head_epochs", -1),
        ("head_epochs", 12),
        ("learning_rate", 0.0),
        ("workers", 0),
        ("run", ""),
        ("run", "."),
        ("run", ".."),
        ("run", "a/b"),
        ("run", "/a"),
        ("run", "agelib"),
        ("run", 5),
        ("epochs", "5"),
        ("epochs", 2.5),
        ("epochs", True),
        ("epochs", (1, 2)),
        ("margin", "0.1"),
        ("align", "no"),
        ("weights", 1),
        ("train_sources", 5),
        ("train_sources", None),
        ("test_sources", (["a"],)),
        ("teachers", (None,)),
        ("teachers", (1,)),
        ("data", 5),
        ("own", 5),
        ("learning_rate", float("inf")),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(name, value):
    with pytest.raises(AgelibError, match=f"^{name} is .*, but must be "):
        Config(**{name: value})


@pytest.mark.parametrize(
    "wrong",
    [
        {"train_sources": ("wiki", "a/b")},
        {"train_sources": ()},
        {"train_sources": ("",)},
        {"test_sources": ("..",)},
        {"test_sources": ()},
    ],
)
def test_sources_are_names_of_folders(wrong):
    with pytest.raises(AgelibError, match=r"_sources is .* must be names of data sets"):
        Config(**wrong)


def test_one_source_needs_no_tuple():
    assert Config(train_sources="aaf", test_sources="appa-real").sources == ("aaf", "appa-real")


def test_an_unknown_profile_is_refused():
    with pytest.raises(AgelibError, match=r"profile is 'paper', .* sample, wiki, imdb-wiki"):
        Config.from_profile("paper")


def test_an_unknown_setting_is_refused_by_name():
    with pytest.raises(AgelibError, match="backbnoe"):
        Config.from_profile("wiki", backbnoe="EfficientNetB0")


def test_settings_cannot_change_under_way():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().epochs = 3


def test_the_sample_never_mixes_with_real_data(tmp_path):
    sample, wiki = (Config.from_profile(name, data=tmp_path) for name in ("sample", "wiki"))
    for folder in ("raw", "faces", "run_folder", "drive"):
        assert getattr(sample, folder).is_relative_to(tmp_path / "sample")
        assert getattr(wiki, folder).is_relative_to(tmp_path)
        assert not getattr(wiki, folder).is_relative_to(tmp_path / "sample")


def test_each_run_has_its_own_folder(tmp_path):
    config = Config.from_profile("wiki", data=tmp_path, run="b0")
    assert config.run_folder == tmp_path / "runs" / "b0"


def test_agelib_data_moves_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("AGELIB_DATA", str(tmp_path))
    assert Config.from_profile("wiki").raw == tmp_path / "raw"


def test_data_lies_in_a_checkout_by_default(monkeypatch):
    monkeypatch.delenv("AGELIB_DATA", raising=False)
    assert Config().data == Path(__file__).parents[1] / "data"


def test_an_installed_package_keeps_data_in_the_working_folder(tmp_path):
    shutil.copytree(
        Path(agelib.__file__).parent,
        tmp_path / "site" / "agelib",
        ignore=shutil.ignore_patterns("*.npz", "*.keras"),
    )
    environment = {k: v for k, v in os.environ.items() if k != "AGELIB_DATA"}
    code = "from agelib import Config; print(Config().data)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == tmp_path / "data"


def test_a_tilde_in_the_data_folder_is_home():
    assert Config(data="~/faces").data == Path.home() / "faces"


def test_a_tilde_in_agelib_drive_is_home(monkeypatch):
    # .env files and notebooks' %env do not expand it as a shell does.
    monkeypatch.setenv("AGELIB_DRIVE", "~/gdrive")
    assert Config.from_profile("wiki").drive == Path.home() / "gdrive" / "age_gender"


def test_off_colab_a_plain_folder_stands_for_drive(tmp_path):
    assert Config.from_profile("wiki", data=tmp_path).drive == tmp_path / "drive"


def test_agelib_drive_names_the_drive_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AGELIB_DRIVE", str(tmp_path / "gdrive"))
    assert Config.from_profile("wiki").drive == tmp_path / "gdrive" / "age_gender"
    assert Config.from_profile("sample").drive == tmp_path / "gdrive" / "age_gender" / "sample"


def test_on_colab_drive_is_google_drive(tmp_path, monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab-20260801")
    monkeypatch.setenv("AGELIB_DRIVE", str(tmp_path))
    home = Path("/content/drive/MyDrive/age_gender")
    assert Config.from_profile("wiki").drive == home
    assert Config.from_profile("sample").drive == home / "sample"


def test_the_sample_is_its_own_mirror(tmp_path, monkeypatch):
    monkeypatch.setenv("AGELIB_MIRROR", "https://example.org/mirror")
    config = Config.from_profile("sample", data=tmp_path)
    assert config.mirror == str(tmp_path / "sample" / "mirror")
    assert Config.from_profile("wiki").mirror == "https://example.org/mirror"


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_mirror_the_official_homes_count(monkeypatch, value):
    monkeypatch.delenv("AGELIB_MIRROR", raising=False)
    if value is not None:
        monkeypatch.setenv("AGELIB_MIRROR", value)
    assert Config.from_profile("wiki").mirror is None


def test_a_mirror_in_the_home_folder_is_found(monkeypatch):
    monkeypatch.setenv("AGELIB_MIRROR", "~/archives")
    assert Config.from_profile("wiki").mirror == str(Path.home() / "archives")


def test_a_set_cannot_be_all_validation_and_test():
    assert Config.from_profile("wiki", val_fraction=0.5).val_fraction == 0.5
    with pytest.raises(AgelibError, match=r"val_fraction is 0\.5, but must be below 0\.5"):
        Config.from_profile("wiki", test_sources="wiki", val_fraction=0.5)


def test_sources_are_all_data_sets_once():
    assert Config.from_profile("imdb-wiki").sources == ("wiki", "imdb", "utkface")
    assert Config(train_sources=("utkface",), test_sources=("wiki",)).sources == ("utkface", "wiki")


@pytest.mark.parametrize("profile", DESIGN)
def test_to_dict_is_json_and_gives_the_same_settings_back(profile, tmp_path):
    config = Config.from_profile(profile, data=tmp_path, workers=3)
    settings = json.loads(json.dumps(config.to_dict()))
    assert settings == config.to_dict()
    assert dataclasses.replace(Config(**settings), data=tmp_path, workers=3) == config.resolved


def test_to_dict_leaves_out_what_is_this_machines_affair(tmp_path):
    config = Config.from_profile("wiki", data=tmp_path, workers=3)
    fields = {f.name for f in dataclasses.fields(Config)}
    assert set(config.to_dict()) == fields - {"data", "own", "workers"}
    for text in (repr(config), config._repr_html_()):
        assert str(tmp_path) not in text


def test_the_table_of_settings_shows_what_html_would_hide():
    assert "runs/&lt;name&gt;" in Config()._repr_html_()


# Crops


def test_a_crop_is_stored_under_the_names_of_the_settings():
    stored = {"crop_size": 96, "margin": 0.2, "align": True}
    assert Config(**stored).crop.to_json() == stored
    assert Crop.from_json(stored) == Config(**stored).crop


def test_a_model_from_before_faces_could_be_aligned_has_its_crop():
    assert Crop.from_json({"crop_size": 96, "margin": 0.2}) == Crop(96, 0.2, align=False)


@pytest.mark.parametrize("other", [Crop(64, 0.2), Crop(96, 0.0), Crop(96, 0.2, align=True)])
def test_faces_of_another_crop_are_one_sentence(other):
    Crop(96, 0.2).check(Crop(96, 0.2), Path("faces/wiki"))
    with pytest.raises(AgelibError, match=r"^faces/wiki holds crops of crop_size") as caught:
        Crop(96, 0.2).check(other, Path("faces/wiki"), user="the model")
    assert f"{other}, but the model needs crop_size 96, margin 0.2, align False" in str(
        caught.value
    )
