import datetime

import numpy as np
import pytest
import scipy.io

from agelib import AgelibError
from agelib.config import Config
from agelib.datasets import download
from agelib.datasets.readers import age_at_photo, read_imdb_wiki, read_utkface
from agelib.datasets.tables import count_reasons, person_hash, split_by_person

MAY_5_1981 = 723671  # MATLAB: datenum(1981, 5, 5)


def matlab_day(year, month, day):
    return datetime.date(year, month, day).toordinal() + 366


def cells(values):
    array = np.empty((1, len(values)), object)
    array[0, :] = values
    return array


def write_mat(folder, rows, name="wiki", **changes):
    """Writes a .mat as MATLAB does, and an empty image for each row unless it says `absent`."""
    good = {
        "birth": MAY_5_1981,
        "year": 2009,
        "gender": 1.0,
        "face_score": 3.5,
        "second": np.nan,
        "absent": False,
        "name": "Somebody",
    }
    rows = [good | {"path": f"{i:02d}/{100 + i}_1981-05-05_2009.jpg"} | r for i, r in rows]
    for row in rows:
        path = folder / row["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if not row["absent"]:
            path.touch()
    struct = {
        "dob": np.array([[row["birth"] for row in rows]], np.int32),
        "photo_taken": np.array([[row["year"] for row in rows]], np.uint16),
        "full_path": cells([row["path"] for row in rows]),
        "gender": np.array([[row["gender"] for row in rows]], float),
        "name": cells([row["name"] for row in rows]),
        "face_location": cells([np.array([1.0, 1.0, 9.0, 9.0])] * len(rows)),
        "face_score": np.array([[row["face_score"] for row in rows]], float),
        "second_face_score": np.array([[row["second"] for row in rows]], float),
    } | changes
    struct = {key: value for key, value in struct.items() if value is not None}
    scipy.io.savemat(folder / f"{name}.mat", {name: struct}, do_compression=True)


def read_mat(folder, *rows, name="wiki"):
    write_mat(folder, list(enumerate(rows)), name)
    return read_imdb_wiki(folder, name)


def utkface(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return read_utkface(folder).set_index("path")


@pytest.mark.parametrize(("official", "ours"), [(1.0, 0), (0.0, 1)])
def test_imdb_wiki_calls_male_1(tmp_path, official, ours):
    assert read_mat(tmp_path, {"gender": official}, {})["gender"][0] == ours


@pytest.mark.parametrize(("official", "ours"), [(0, 0), (1, 1)])
def test_utkface_calls_male_0(tmp_path, official, ours):
    table = utkface(tmp_path, f"30_{official}_2_20170116174525125.jpg.chip.jpg")
    assert table["gender"].tolist() == [ours]


def test_matlab_day_numbers_are_dates():
    # 56 days later it is 30 June: one day more makes the person a year younger.
    days = MAY_5_1981 + np.array([0, 56, 57])
    assert age_at_photo(np.full(3, 2009), days).tolist() == [28, 28, 27]
    assert matlab_day(1981, 5, 5) == MAY_5_1981


@pytest.mark.parametrize(
    ("birth", "age"),
    [
        ((1980, 1, 1), 30),
        ((1980, 6, 30), 30),
        ((1980, 7, 1), 29),
        ((1980, 12, 31), 29),
    ],
)
def test_whoever_is_born_in_july_or_later_is_a_year_younger(birth, age):
    assert age_at_photo(np.array([2010]), np.array([matlab_day(*birth)])).tolist() == [age]


@pytest.mark.parametrize("day", [-5, 0, 366, 367, 2**31 - 1])
def test_impossible_birth_dates_give_impossible_ages(day):
    age = age_at_photo(np.array([2010]), np.array([day]))[0]
    assert not 1 <= age <= 85


def test_photo_years_do_not_wrap_around():
    young = np.array([1900], np.uint16)
    assert age_at_photo(young, np.array([matlab_day(1931, 1, 1)])).tolist() == [-31]


def test_all_images_of_a_person_fall_into_one_split(tmp_path):
    rows = [
        {"path": f"{i % 7}/{i}_1981-05-05_2009.jpg", "name": f"Person {i % 40}"} for i in range(200)
    ]
    table = read_mat(tmp_path, *rows)
    table["split"] = split_by_person(table["person"].map(person_hash).to_numpy(np.uint64), 0.3, 0)
    assert table["person"].nunique() == 40
    assert (table.groupby("person")["split"].nunique() == 1).all()
    assert table["split"].nunique() == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, ""),
        ({"absent": True}, "missing"),
        ({"absent": True, "gender": np.nan}, "missing"),
        ({"year": 1981, "gender": np.nan, "second": 1.5}, "age"),
        ({"face_score": -np.inf, "second": 1.5}, "face_score"),
        ({"year": 1981}, "age"),
        ({"year": 1982}, ""),
        ({"year": 2066}, ""),
        ({"year": 2067}, "age"),
        ({"birth": 0}, "age"),
        ({"gender": np.nan}, "gender"),
        ({"face_score": 0.99}, "face_score"),
        ({"face_score": 1.0}, ""),
        ({"face_score": -np.inf}, "face_score"),
        ({"face_score": np.nan}, "face_score"),
        ({"second": 1.5}, "second_face"),
        ({"second": -2.0}, "second_face"),
    ],
)
def test_reject_reasons_of_imdb_wiki(tmp_path, row, reason):
    assert read_mat(tmp_path, row, {})["reject"].tolist() == [reason, ""]


def test_nothing_is_dropped_and_unknown_labels_are_missing(tmp_path):
    table = read_mat(tmp_path, {"gender": np.nan}, {"absent": True}, {})
    assert list(table.columns) == ["path", "age", "gender", "person", "race", "reject"]
    assert table["gender"].isna().tolist() == [True, False, False]
    assert table["race"].isna().all()
    assert table["age"].tolist() == [28, 28, 28]
    assert count_reasons(table).to_dict() == {"gender": 1, "missing": 1, "usable": 1}


def test_the_same_person_in_wiki_and_imdb_is_one_person(tmp_path):
    wiki, imdb = tmp_path / "wiki_crop", tmp_path / "imdb_crop"
    wiki.mkdir()
    imdb.mkdir()
    person = {"name": "Fred Astaire"}
    one = read_mat(wiki, person | {"path": "17/10000217_1981-05-05_2009.jpg"})
    other = read_mat(
        imdb,
        person | {"path": "01/nm0000001_rm124825600_1899-5-10_1968.jpg"},
        person | {"name": " fred  astaire"},
        name="imdb",
    )
    assert other["person"].tolist() == one["person"].tolist() * 2


def test_people_of_one_name_are_told_apart_by_their_birth(tmp_path):
    row = {"name": "Sanjay Gupta"}
    table = read_mat(tmp_path, row, row | {"birth": MAY_5_1981 + 1}, {"name": "Ravi Gupta"})
    assert table["person"].is_unique


def test_people_without_a_name_go_by_the_ids_in_the_file_names(tmp_path):
    wiki, imdb = tmp_path / "wiki_crop", tmp_path / "imdb_crop"
    wiki.mkdir()
    imdb.mkdir()
    row = {"name": "", "path": "17/10000217_1981-05-05_2009.jpg"}
    assert read_mat(wiki, row, row | {"name": " "})["person"].tolist() == ["10000217"] * 2
    row = {"name": "", "path": "01/nm0000001_rm124825600_1899-5-10_1968.jpg"}
    assert read_mat(imdb, row, row, name="imdb")["person"].tolist() == ["nm0000001"] * 2


def test_a_single_row_is_still_a_table(tmp_path):
    table = read_mat(tmp_path, {})
    assert table["path"].tolist() == ["00/100_1981-05-05_2009.jpg"]
    assert table["reject"].tolist() == [""]


def test_missing_metadata_says_what_to_do(tmp_path):
    with pytest.raises(AgelibError, match=r"wiki\.mat is missing: download and extract"):
        read_imdb_wiki(tmp_path / "wiki_crop", "wiki")


@pytest.mark.parametrize("kept", [0, 60, 127, 128, 300, -1])
def test_truncated_metadata_is_reported(tmp_path, kept):
    write_mat(tmp_path, [(0, {}), (1, {})])
    path = tmp_path / "wiki.mat"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(AgelibError, match=r"wiki\.mat is no IMDB-WIKI metadata"):
        read_imdb_wiki(tmp_path, "wiki")


@pytest.mark.parametrize(
    "content", [b"<html>moved</html>" * 40, bytes(4096)], ids=["html", "zeros"]
)
def test_metadata_of_another_kind_is_reported(tmp_path, content):
    (tmp_path / "wiki.mat").write_bytes(content)
    with pytest.raises(AgelibError, match=r"wiki\.mat is no IMDB-WIKI metadata"):
        read_imdb_wiki(tmp_path, "wiki")


def test_a_matlab_file_of_something_else_is_reported(tmp_path):
    scipy.io.savemat(tmp_path / "wiki.mat", {"wiki": np.arange(9)})
    with pytest.raises(AgelibError, match=r"wiki\.mat is no IMDB-WIKI metadata"):
        read_imdb_wiki(tmp_path, "wiki")


def test_a_birth_that_is_no_number_makes_an_impossible_age(tmp_path):
    births = np.array([[matlab_day(1980, 3, 1), np.nan]])
    write_mat(tmp_path, [(0, {}), (1, {})], dob=births)
    assert read_imdb_wiki(tmp_path, "wiki")["reject"].tolist() == ["", "age"]


def test_a_gender_other_than_0_and_1_is_unknown(tmp_path):
    table = read_mat(tmp_path, {"gender": 2.0}, {})
    assert table["reject"].tolist() == ["gender", ""]


def test_matlabs_newer_format_is_reported(tmp_path):
    write_mat(tmp_path, [(0, {}), (1, {})])
    content = bytearray((tmp_path / "wiki.mat").read_bytes())
    content[124:126] = b"\0\2"  # the version in the header
    (tmp_path / "wiki.mat").write_bytes(bytes(content))
    with pytest.raises(AgelibError, match=r"wiki\.mat is no IMDB-WIKI metadata"):
        read_imdb_wiki(tmp_path, "wiki")


def test_metadata_of_the_other_set_is_reported(tmp_path):
    write_mat(tmp_path, [(0, {})], "imdb")
    (tmp_path / "imdb.mat").rename(tmp_path / "wiki.mat")
    with pytest.raises(AgelibError, match=r"wiki\.mat is no IMDB-WIKI metadata"):
        read_imdb_wiki(tmp_path, "wiki")


def test_metadata_without_a_column_is_reported(tmp_path):
    write_mat(tmp_path, [(0, {}), (1, {})], second_face_score=None)
    with pytest.raises(AgelibError, match=r"wiki\.mat is no IMDB-WIKI metadata"):
        read_imdb_wiki(tmp_path, "wiki")


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("26_0_3_20170116174525125.jpg.chip.jpg", [26, 0, 3]),
        ("1_1_4_20170109194452834.jpg.chip.jpg", [1, 1, 4]),
        ("85_0_0_20170109.jpg.chip.jpg", [85, 0, 0]),
        ("30_1_2_2017.jpg", [30, 1, 2]),
        ("part2/30_1_2_2017.JPG", [30, 1, 2]),
        ("30_1_2_2017.png", [30, 1, 2]),
    ],
)
def test_utkface_names_hold_age_gender_and_race(tmp_path, name, labels):
    row = utkface(tmp_path, name).loc[name]
    assert [row["age"], row["gender"], row["race"], row["reject"]] == [*labels, ""]


@pytest.mark.parametrize(
    "name",
    [
        "39_1_20170116174525125.jpg.chip.jpg",
        "61_3_20170109150557335.jpg.chip.jpg",
        "24_1_0_20170116220224657 .jpg.chip.jpg",
        "55_1_0_20170116232725357jpg.chip.jpg",
        "30_2_0_20170116174525125.jpg.chip.jpg",
        "30_1_5_20170116174525125.jpg.chip.jpg",
        "-3_1_0_20170116174525125.jpg.chip.jpg",
        "30_1_0_20170116174525125.jpg.chip.jpg.tmp",
        "README.txt",
    ],
)
def test_utkface_names_that_do_not_say_all_labels_are_rejected_whole(tmp_path, name):
    row = utkface(tmp_path, name, "30_1_2_2017.jpg").loc[name]
    assert row["reject"] == "name"
    assert row[["age", "gender", "race"]].isna().all()


@pytest.mark.parametrize(
    ("age", "reason"), [(0, "age"), (1, ""), (85, ""), (86, "age"), (116, "age")]
)
def test_utkface_ages_outside_1_to_85_are_rejected(tmp_path, age, reason):
    table = utkface(tmp_path, f"{age}_1_0_20170116174525125.jpg.chip.jpg")
    assert table["reject"].tolist() == [reason]
    assert table["age"].tolist() == [age]


def test_utkface_rows_are_sorted_and_hidden_files_ignored(tmp_path):
    (tmp_path / ".DS_Store").touch()
    table = utkface(tmp_path, "b/9_0_0_1.jpg", "a/8_0_0_1.jpg", "a/10_0_0_1.jpg")
    assert table.index.tolist() == ["a/10_0_0_1.jpg", "a/8_0_0_1.jpg", "b/9_0_0_1.jpg"]
    assert table["person"].tolist() == ["10_0_0_1.jpg", "8_0_0_1.jpg", "9_0_0_1.jpg"]


@pytest.mark.parametrize("exists", [True, False], ids=["empty", "absent"])
def test_a_folder_without_images_says_what_to_do(tmp_path, exists):
    folder = tmp_path / "UTKFace"
    if exists:
        folder.mkdir()
    with pytest.raises(AgelibError, match="UTKFace holds no images: download and extract"):
        read_utkface(folder)


@pytest.fixture
def real(mirror, tmp_path):
    config = Config.from_profile("wiki", data=tmp_path)

    def extract(name):
        download.fetch(name, config)
        return download.extract(name, config)

    return extract


@pytest.mark.real
@pytest.mark.slow
def test_the_real_wiki_table(real):
    table = read_imdb_wiki(real("wiki"), "wiki")
    assert len(table) == 62_328
    assert (table["reject"] == "").sum() == 34_127
    kept = table[table["reject"] == ""]
    assert kept["age"].between(1, 85).all()
    assert kept["gender"].isin([0, 1]).all()
    # WIKI's people are mostly men: swapped codes would show here.
    assert (kept["gender"] == 0).mean() > 0.6
    assert set(table["reject"]) == {"", "missing", "age", "gender", "face_score", "second_face"}


@pytest.mark.real
@pytest.mark.slow
def test_the_real_utkface_table(real):
    table = read_utkface(real("utkface"))
    assert len(table) == 14_290
    assert set(table["reject"]) <= {"", "age", "name"}
    kept, named = table[table["reject"] == ""], table[table["reject"] != "name"]
    assert kept["age"].between(1, 85).all()
    assert named[["age", "gender", "race"]].notna().all(axis=None)
    assert table["person"].is_unique


def test_copies_of_an_image_count_once(tmp_path):
    photo = "25_0_2_20170116174525125.jpg"
    table = utkface(tmp_path, f"UTKFace/{photo}.chip.jpg", f"crop_part1/{photo}.chip.jpg", photo)
    assert sorted(table["reject"]) == ["", "duplicate", "duplicate"]
