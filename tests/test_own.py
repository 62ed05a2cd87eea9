import numpy as np
import pytest
from PIL import Image

from agelib import AgelibError
from agelib.labels import count_reasons
from agelib.own import read_own

HEADER = "path,age,gender\n"


@pytest.fixture
def folder(tmp_path):
    """Three images, one of them deeper, one of another kind."""
    for name in ("a.jpg", "b.PNG", "deep/c.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def read(folder, text, encoding="utf-8"):
    (folder / "labels.csv").write_text(text, encoding=encoding)
    return read_own(folder).set_index("path")


def test_labels_come_from_the_file(folder):
    table = read(folder, HEADER + "a.jpg,34,male\nb.PNG,7,female\ndeep/c.jpeg,80,1\n")
    assert (table["reject"] == "").all()
    assert table["age"].to_dict() == {"a.jpg": 34, "b.PNG": 7, "deep/c.jpeg": 80}
    assert table["gender"].to_dict() == {"a.jpg": 0, "b.PNG": 1, "deep/c.jpeg": 1}


@pytest.mark.parametrize("word", ["0", "0.0", "m", "M", "Male", "man", " male "])
def test_zero_is_male_in_any_spelling(folder, word):
    assert read(folder, HEADER + f"a.jpg,34,{word}\n").loc["a.jpg", "gender"] == 0


@pytest.mark.parametrize("word", ["1", "1.0", "f", "FEMALE", "woman"])
def test_one_is_female_in_any_spelling(folder, word):
    assert read(folder, HEADER + f"a.jpg,34,{word}\n").loc["a.jpg", "gender"] == 1


@pytest.mark.parametrize("word", ["", "2", "-1", "unknown", "nan"])
def test_another_gender_is_rejected_by_name(folder, word):
    assert read(folder, HEADER + f"a.jpg,34,{word}\n").loc["a.jpg", "reject"] == "gender"


@pytest.mark.parametrize("age", ["", "0", "0.9", "86", "-3", "old", "nan", "inf", "1e30"])
def test_an_age_outside_1_to_85_is_rejected_by_name(folder, age):
    assert read(folder, HEADER + f"a.jpg,{age},1\n").loc["a.jpg", "reject"] == "age"


def test_ages_are_whole_years_as_people_count_them(folder):
    assert read(folder, HEADER + "a.jpg,34.9,1\n").loc["a.jpg", "age"] == 34


def test_every_image_and_every_row_is_accounted_for(folder):
    rows = "a.jpg,34,1\n./a.jpg,50,0\ngone.jpg,34,1\n"
    (folder / "notes.txt").touch()
    table = read(folder, HEADER + rows)
    counts = count_reasons(table.reset_index()).to_dict()
    assert counts == {"kept": 1, "duplicate": 1, "missing": 1, "unlabelled": 2}


def test_a_person_of_several_images_is_one(folder):
    rows = "a.jpg,34,1,Ada\nb.PNG,40,1,Ada\ndeep/c.jpeg,5,0,\n"
    persons = read(folder, "path,age,gender,person\n" + rows)["person"]
    assert persons.to_list() == ["Ada", "Ada", "deep/c.jpeg"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Path;Age;Gender\na.jpg;34;m\n", "utf-8"),
        ("path\tage\tgender\na.jpg\t34\tm\n", "utf-8"),
        ("path,age,gender\r\na.jpg,34,m\r\n", "utf-8-sig"),
        ("gender, age, path, camera\nm, 34, a.jpg, Leica\n", "utf-8"),
        ('path,age,gender\n"a.jpg",34,m\n', "utf-8"),
    ],
    ids=["semicolons", "tabs", "Excel", "other order", "quotes"],
)
def test_files_of_other_programs_are_read(folder, text, encoding):
    table = read(folder, text, encoding)
    assert table.loc["a.jpg", ["age", "gender"]].to_list() == [34, 0]


def test_paths_of_windows_are_read(folder):
    assert read(folder, HEADER + "deep\\c.jpeg,34,m\n").loc["deep/c.jpeg", "reject"] == ""


def test_a_folder_without_labels_is_told_what_to_write(folder):
    with pytest.raises(AgelibError, match=r"labels\.csv is missing: write one with the columns"):
        read_own(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,age,gender\na.jpg,3,1\n", "columns file, age, gender, but not path"),
        ("a.jpg,34,1\nb.PNG,7,0\n", "but not path, age, gender"),
        (HEADER, "names no image"),
        ("", "no CSV file"),
    ],
    ids=["another name", "no header", "no rows", "empty"],
)
def test_a_file_that_is_no_table_of_labels_is_told_why(folder, text, says):
    with pytest.raises(AgelibError, match=says):
        read(folder, text)


def test_a_file_that_is_no_text_is_told_so(folder):
    (folder / "labels.csv").write_bytes(bytes(range(256)) * 8)
    with pytest.raises(AgelibError, match="no CSV file"):
        read_own(folder)
