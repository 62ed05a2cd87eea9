"""The notebooks' form; nbval runs them (`--nbval-lax` in pyproject.toml)."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from agelib.config import Config

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path, kind):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def test_the_story_has_seven_numbered_parts():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"0{number}" for number in range(1, 8)]


def test_one_title_and_a_badge(notebook):
    prose = "\n".join(source(cell) for cell in cells(notebook, "markdown"))
    assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1
    assert "colab-badge.svg" in prose


def test_setup_parameters_and_summary_are_there_in_order(notebook):
    prose = "\n".join(source(cell) for cell in cells(notebook, "markdown"))
    places = [prose.index(f"## {heading}") for heading in ("Setup", "Parameters", "Summary")]
    assert places == sorted(places)


def test_the_form_offers_the_sample_first(notebook):
    forms = [source(cell) for cell in cells(notebook, "code") if "@param" in source(cell)]
    assert len(forms) == 1
    assert forms[0].startswith('profile = "sample"  # @param')


def test_colab_can_read_every_field_of_the_form(notebook):
    [form] = [source(cell) for cell in cells(notebook, "code") if "@param" in source(cell)]
    for line in form.splitlines():
        assert "@param" not in line or re.match(r"\w+ = .+  # @param [\[{]", line), line


def test_setup_is_short_hidden_and_the_same_everywhere(notebook):
    setup = cells(notebook, "code")[0]
    assert source(setup) == source(cells(NOTEBOOKS[0], "code")[0])
    assert setup["metadata"]["jupyter"] == {"source_hidden": True}
    code = [line for line in source(setup).splitlines() if line and not line.startswith("#")]
    assert len(code) <= 8


@pytest.mark.slow
@pytest.mark.parametrize("place", ["project", "elsewhere"])
def test_setup_finds_the_package_from_any_folder(place, tmp_path, monkeypatch):
    # As papermill runs notebooks: in the folder that it is called from.
    if place == "elsewhere":
        monkeypatch.setenv("PYTHONPATH", str(ROOT))  # what `pip install -e .` does
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    setup, *_ = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = nbformat.v4.new_code_cell("import agelib; print(agelib.__file__)")
    notebook.cells = [setup, found]
    folder = ROOT if place == "project" else tmp_path
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}).execute()
    assert Path(found.outputs[0].text.strip()) == ROOT / "agelib" / "__init__.py"


def test_no_function_or_class_is_defined(notebook):
    for cell in cells(notebook, "code"):
        assert not re.search(r"^\s*(def|class) ", source(cell), re.MULTILINE)


def test_cells_are_short(notebook):
    for cell in cells(notebook, "code"):
        assert len(source(cell).splitlines()) <= 15


def test_outputs_are_committed_without_errors_or_noise(notebook):
    outputs = [output for cell in cells(notebook, "code") for output in cell["outputs"]]
    assert outputs
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr", "".join(output["text"])


def test_outputs_name_no_place_on_the_machine_that_made_them(notebook):
    text = notebook.read_text(encoding="utf-8")
    assert not re.search(r"/(tmp|home|root|Users)/", text)


def test_each_notebook_names_the_next(notebook):
    position = NOTEBOOKS.index(notebook)
    if position + 1 < len(NOTEBOOKS):
        summary = source(cells(notebook, "markdown")[-1])
        assert NOTEBOOKS[position + 1].name in summary or NOTEBOOKS[position + 2].name in summary


PAGES = ("README.md", "data/README.md", "agelib/pretrained/README.md")


def anchors(text):
    """Returns GitHub's anchor of each heading."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *(f"notebooks/{path.name}" for path in NOTEBOOKS)])
def test_every_link_leads_to_a_file_and_a_heading(page):
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join(source(cell) for cell in cells(path, "markdown"))
    for link in re.findall(r"(?:\]\(|src=\")(?!https?:)([^)\"\s]+)[)\"]", text):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("README.md", "faces of {size} pixels"),
        ("README.md", "the pretrained model, {size} pixels"),
        ("notebooks/04_train.ipynb", "the {size} pixels and margin {margin} that it has learned"),
        ("notebooks/05_evaluate.ipynb", "({size} pixels, margin {margin})"),
    ],
)
def test_the_crops_of_the_pretrained_model_are_named_as_they_are(page, words):
    own = Config.from_profile("own")
    text = (ROOT / page).read_text(encoding="utf-8")
    assert words.format(size=own.crop_size, margin=own.margin) in text


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180


def test_every_figure_has_a_text_for_those_who_cannot_see_it(notebook):
    for cell in cells(notebook, "code"):
        if any("image/png" in output.get("data", {}) for output in cell["outputs"]):
            assert len(cell["metadata"].get("alt", "").split()) > 4, source(cell)


def test_outputs_that_must_not_change_are_marked():
    marked = [
        path.name[:2]
        for path in NOTEBOOKS
        for cell in cells(path, "code")
        if source(cell).startswith("# NBVAL_CHECK_OUTPUT")
    ]
    assert {"01", "02", "03"} <= set(marked)
