import json
import shutil

import pytest

from agelib import AgelibError, address


@pytest.fixture
def copy(tmp_path):
    for path in address.files_with_address():
        target = tmp_path / path.relative_to(address.ROOT)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    return tmp_path


def test_every_file_with_the_address_agrees():
    name = address.read_address().removeprefix("https://github.com/")
    for path in address.files_with_address():
        assert name in path.read_text(encoding="utf-8"), path.name


def test_every_badge_opens_its_own_notebook():
    name = address.read_address().removeprefix("https://github.com/")
    for path in address.ROOT.glob("notebooks/*.ipynb"):
        badge = f"https://colab.research.google.com/github/{name}/blob/main/notebooks/{path.name}"
        assert badge in path.read_text(encoding="utf-8")


def test_every_setup_cell_clones_the_address():
    for path in address.ROOT.glob("notebooks/*.ipynb"):
        setup = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][2]["source"])
        assert f'"{address.read_address()}"' in setup


def test_a_new_address_is_written_everywhere(copy):
    changed = address.write_address("https://github.com/some-one/faces.git", copy)
    assert changed == address.files_with_address(copy)
    assert address.read_address(copy) == "https://github.com/some-one/faces"
    old = address.read_address().removeprefix("https://github.com/")
    for path in changed:
        text = path.read_text(encoding="utf-8")
        assert old not in text
        assert "github.com/some-one/faces" in text


def test_the_address_can_be_written_back(copy):
    before = [path.read_bytes() for path in address.files_with_address(copy)]
    address.write_address("https://github.com/a/b", copy)
    address.write_address(address.read_address(), copy)
    assert [path.read_bytes() for path in address.files_with_address(copy)] == before


@pytest.mark.parametrize(
    "bad", ["github.com/a/b", "https://gitlab.com/a/b", "https://github.com/a"]
)
def test_an_address_that_colab_cannot_open_is_refused(copy, bad):
    with pytest.raises(AgelibError, match="not of the form"):
        address.write_address(bad, copy)
