import errno
import os
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from agelib import AgelibError
from agelib.datasets.own_photos import copy_own, read_labelled
from agelib.datasets.tables import count_reasons

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
    return read_labelled(folder).set_index("path")


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


@pytest.mark.parametrize("word", ["", "-1", "unknown", "nan"])
def test_another_gender_is_rejected_by_name(folder, word):
    table = read(folder, HEADER + f"a.jpg,34,{word}\nb.PNG,34,m\ndeep/c.jpeg,34,f\n")
    assert table["reject"].tolist() == ["gender", "", ""]


@pytest.mark.parametrize(
    "words", ["12", "012", "22", "mw", "hm", "hf", ["male", "weiblich"], ["2.0", "1.0"]]
)
def test_a_column_that_leaves_doubt_about_who_is_male_is_refused(folder, words):
    rows = "".join(f"{name},34,{word}\n" for name, word in zip("abc", words, strict=False))
    with pytest.raises(AgelibError, match=f"'{words[-1]}'.* in its column gender.*: write male or"):
        read(folder, HEADER + rows)


def test_a_column_of_one_gender_leaves_no_doubt(folder):
    table = read(folder, HEADER + "a.jpg,34,1\nb.PNG,34,\n")
    assert table["gender"].tolist()[:1] == [1]
    assert table["reject"].tolist() == ["", "gender", "unlabelled"]


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("3-9", (3, 9)),
        ("3 – 9", (3, 9)),
        ("3 to 9", (3, 9)),
        ("0-2", (1, 2)),
        ('"(25, 32)"', (25, 32)),
        ('"[25,32]"', (25, 32)),
        ("60+", (60, 85)),
        ("more than 70", (70, 85)),
        ("More than 70", (70, 85)),
        (">= 70", (70, 85)),
        ("70 and over", (70, 85)),
        ('"(60, 100)"', (60, 85)),
        ("(35)", (35, 35)),
        ("35", (35, 35)),
        ("34-34", (34, 34)),
    ],
)
def test_an_age_may_be_a_range(folder, text, ends):
    row = read(folder, HEADER + f"a.jpg,{text},1\nb.PNG,3-9,1\n").loc["a.jpg"]
    assert (row["age"], row["age_high"]) == ends
    assert row["reject"] == ""


@pytest.mark.parametrize(
    "text", ["90-100", "0-0", "9-3", "+", "3-", "-3-9", "3-9-12", "None", "9-Mar"]
)
def test_a_range_of_no_age_is_rejected_by_name(folder, text):
    assert read(folder, HEADER + f"a.jpg,{text},1\n").loc["a.jpg", "reject"] == "age"


def test_columns_of_fairface_are_read_as_they_are(folder):
    text = "file,age,gender,race,service_test\na.jpg,50-59,Male,East Asian,True\n"
    row = read(folder, text + "b.PNG,more than 70,Female,,False\n").iloc[0]
    assert row[["age", "age_high", "gender", "race"]].tolist() == [50, 59, 0, "East Asian"]
    assert read(folder, text)["race"].isna().tolist() == [False, True, True]


def test_races_are_groups_and_no_names(folder):
    rows = "".join(f"{i}.jpg,34,m,group {i}\n" for i in range(101))
    with pytest.raises(AgelibError, match="101 different words in its column race"):
        read(folder, "path,age,gender,race\n" + rows)


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
    assert counts == {"usable": 1, "duplicate": 1, "missing": 1, "unlabelled": 2}


def test_a_person_of_several_images_is_one(folder):
    rows = "a.jpg,34,1,Ada\nb.PNG,40,1, ada \ndeep/c.jpeg,5,0,\n"
    persons = read(folder, "path,age,gender,person\n" + rows)["person"]
    assert persons.to_list() == ["ada", "ada", "deep/c.jpeg"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Path;Age;Gender\na.jpg;34;m\n", "utf-8"),
        ("path\tage\tgender\na.jpg\t34\tm\n", "utf-8"),
        ("path,age,gender\r\na.jpg,34,m\r\n", "utf-8-sig"),
        ("gender, age, path, camera\nm, 34, a.jpg, Leica\n", "utf-8"),
        ('path,age,gender\n"a.jpg",34,m\n', "utf-8"),
        ("path|age|gender\na.jpg|34|m\n", "utf-8"),
        ("path;age;gender\na.jpg;34,5;m\n", "utf-8"),
        ("path,age,gender\na.jpg,34,m,\n", "utf-8"),
        ("path,age,gender\n\na.jpg,34,m\n,,\n", "utf-8"),
        ("sep=;\r\npath;age;gender\r\na.jpg;34;m\r\n", "utf-8-sig"),
        ('"sep=,"\npath,age,gender\na.jpg,34,m\n', "utf-8"),
        ("\n \npath;age;gender\na.jpg;34;m\n", "utf-8"),
        ("path;age;gender;note (a, b, c, d)\na.jpg;34;m;x\n", "utf-8"),
        ('path;"age";gender;"a,b,c,d"\na.jpg;34;m;x\n', "utf-8"),
        ("\tpath\tage\tgender\n0\ta.jpg\t34\tm\n", "utf-8"),
    ],
    ids=[
        "semicolons",
        "tabs",
        "Excel",
        "other order",
        "quotes",
        "bars",
        "decimal comma",
        "comma at the end",
        "blank rows",
        "sep=;",
        "sep in quotes",
        "blank first lines",
        "commas in a header",
        "commas in quotes",
        "numbered rows",
    ],
)
def test_files_of_other_programs_are_read(folder, text, encoding):
    table = read(folder, text, encoding)
    assert table.loc["a.jpg", ["age", "gender"]].to_list() == [34, 0]
    assert set(table.index) == {"a.jpg", "b.PNG", "deep/c.jpeg"}


def test_paths_of_windows_are_read(folder):
    assert read(folder, HEADER + "deep\\c.jpeg,34,m\n").loc["deep/c.jpeg", "reject"] == ""


@pytest.mark.parametrize(
    "path", ["../a.jpg", "/etc/passwd", "deep/../../a.jpg", "C:/x.jpg", "c:\\x.jpg"]
)
def test_what_lies_outside_the_folder_stays_there(folder, path):
    table = read(folder / "deep", HEADER + f"{path},34,m\n")
    assert table["reject"].to_list() == ["outside", "unlabelled"]


def test_an_image_that_is_named_may_have_any_ending(folder):
    (folder / "a.jpg").rename(folder / "a")
    assert read(folder, HEADER + "a,34,m\n").loc["a", "reject"] == ""


def test_a_name_too_long_for_any_disk_is_missing(folder):
    assert read(folder, HEADER + f"{'a' * 300},34,m\n")["reject"].iloc[0] == "missing"


def test_accents_may_be_spelled_in_both_ways(folder):
    (folder / "a.jpg").rename(folder / unicodedata.normalize("NFD", "Zoë.jpg"))
    table = read(folder, HEADER + "Zoë.jpg,34,f\n")
    assert (folder / table.index[0]).is_file()
    assert table["reject"].to_list() == ["", "unlabelled", "unlabelled"]


def test_hidden_images_and_folders_are_none(folder):
    for name in (".thumbnails/a.jpg", ".b.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "a.jpg", folder / name)
    assert len(read(folder, HEADER + "a.jpg,34,m\n")) == 3


def test_a_copy_follows_the_folder(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("copy") / "own"
    copy_own(folder, target)
    before = (target / "a.jpg").stat()
    (folder / "b.PNG").unlink()
    (folder / "deep" / "c.jpeg").write_bytes(b"another")
    copy_own(folder, target)
    found = {path.relative_to(target).as_posix() for path in target.rglob("*.*")}
    assert found == {"a.jpg", "deep/c.jpeg"}
    assert (target / "deep" / "c.jpeg").read_bytes() == b"another"
    assert (target / "a.jpg").stat() == before


def test_a_folder_that_drive_does_not_list_is_not_an_empty_one(folder, tmp_path, monkeypatch):
    target, scandir = tmp_path / "own", os.scandir
    copy_own(folder, target)
    before = sorted(target.rglob("*"))

    def failing(place):
        if os.fspath(place).endswith("deep") and not os.fspath(place).startswith(str(target)):
            raise OSError(errno.EIO, "Input/output error")
        return scandir(place)

    monkeypatch.setattr(os, "scandir", failing)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(AgelibError, match=r"could not be copied to .* \(Input/output error\)"):
        copy_own(folder, target)
    with pytest.raises(AgelibError, match=r"could not be read \(Input/output error\)"):
        read(folder, HEADER + "a.jpg,34,m\n")
    monkeypatch.undo()
    assert sorted(target.rglob("*")) == before


def test_a_hidden_folder_that_nobody_may_read_is_passed_over(folder, tmp_path, monkeypatch):
    (folder / ".Trashes").mkdir()
    scandir = os.scandir

    def guarded(place):
        if os.fspath(place).endswith(".Trashes"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(os, "scandir", guarded)
    copy_own(folder, tmp_path / "own")
    assert (tmp_path / "own" / "a.jpg").exists()


def test_an_emptied_folder_has_an_empty_copy(folder, tmp_path):
    target = tmp_path / "own"
    for _ in range(2):
        copy_own(folder, target)
        shutil.rmtree(folder)
        folder.mkdir()
    assert list(target.rglob("*.*")) == []
    copy_own(folder, tmp_path / "another")


def test_an_older_photo_replaces_a_newer_one_as_well(folder, tmp_path):
    target = tmp_path / "own"
    copy_own(folder, target)
    content = bytearray((folder / "a.jpg").read_bytes())
    content[-1] ^= 1
    (folder / "a.jpg").write_bytes(content)
    os.utime(folder / "a.jpg", (0, 0))
    copy_own(folder, target)
    assert (target / "a.jpg").read_bytes() == content


def test_a_copy_that_drive_breaks_off_is_one_sentence(folder, tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "copy2", refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(AgelibError, match=r"could not be copied to .* \(Input/output error\)"):
        copy_own(folder, tmp_path / "own")


def test_a_folder_without_labels_is_told_what_to_write(folder):
    with pytest.raises(AgelibError, match=r"labels\.csv is missing: write one with the columns"):
        read_labelled(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,age,gender\na.jpg,3,1\n", "columns image, age, gender, but not path"),
        ("a.jpg,34,1\nb.PNG,7,0\n", "but not path, age, gender"),
        (HEADER, "names no image"),
        ("", "no CSV file"),
        ("path,age,Age,gender\na.jpg,3,4,1\n", "some of them twice"),
        (HEADER + 'a.jpg,3,"1\n', "no CSV file"),
    ],
    ids=["another name", "no header", "no rows", "empty", "twice", "open quote"],
)
def test_a_file_that_is_no_table_of_labels_is_told_why(folder, text, says):
    with pytest.raises(AgelibError, match=says):
        read(folder, text)


def test_a_file_that_is_no_text_is_told_so(folder):
    (folder / "labels.csv").write_bytes(bytes(range(256)) * 8)
    with pytest.raises(AgelibError, match="no text in UTF-8"):
        read_labelled(folder)
