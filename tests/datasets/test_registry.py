import pytest

from agelib import AgelibError
from agelib.config import Config
from agelib.datasets.registry import describe, images_folder


def test_descriptions_say_what_the_licence_allows():
    table = describe(["wiki", "utkface"])
    assert table.index.tolist() == ["wiki", "utkface"]
    assert table["licence"].str.contains("research only").all()
    assert table["home"].str.startswith("https://").all()


def test_own_data_need_a_folder(tmp_path):
    config = Config.from_profile("wiki", train_sources=("own",), data=tmp_path)
    with pytest.raises(AgelibError, match="--own FOLDER"):
        images_folder("own", config)


def test_own_data_lie_where_they_are(tmp_path):
    assert images_folder("own", Config.from_profile("own", own=tmp_path)) == tmp_path


def test_photos_on_google_drive_have_a_copy_here(tmp_path, monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    config = Config.from_profile("own", own="/content/drive/MyDrive/photos", data=tmp_path)
    assert images_folder("own", config) == tmp_path / "raw" / "own"
