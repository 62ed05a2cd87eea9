import csv
import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

from agelib import AgelibError
from agelib.model.saved import load_model, save_model
from agelib.prediction.estimator import Estimator
from agelib.prediction.photos import find_photos
from agelib.prediction.results import COLUMNS, predict_photos


@pytest.fixture(scope="module")
def estimator(tiny_model_path):
    return Estimator(tiny_model_path)


@pytest.fixture
def album(tmp_path):
    """A broken photo, a portrait, a wall, and a portrait whose name is long."""
    folder = tmp_path / "album"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    Image.fromarray(data.astronaut()[:320, 60:380]).save(folder / "b.png")
    Image.fromarray(np.full((60, 60, 3), 90, np.uint8)).save(folder / "c.png")
    shutil.copy(folder / "b.png", folder / f"{82 * '写'}.png")
    return folder


def read(table):
    with open(table, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def test_each_photo_is_drawn_and_written_before_the_next(estimator, album, tmp_path):
    table, drawn = tmp_path / "faces.csv", tmp_path / "drawn"
    results = predict_photos(estimator, find_photos([album]), drawn, table)
    for count, result in enumerate(results, 1):
        rows = read(table)
        assert len(rows) == count
        assert rows[-1]["photo"] == result.photo
        assert len(list(drawn.glob("*.png"))) == count - 1  # the first is broken
    assert list(rows[0]) == list(COLUMNS)
    assert "cannot be read" in rows[0]["note"]
    assert [row["note"] for row in rows[1:]] == ["", "no face", ""]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["album", "drawn", "faces.csv"]


def test_a_call_that_was_stopped_is_gone_on_with(estimator, album, tmp_path):
    table, drawn, places = tmp_path / "faces.csv", tmp_path / "drawn", find_photos([album])
    whole = list(predict_photos(estimator, places, tmp_path / "other", tmp_path / "other.csv"))
    started = predict_photos(estimator, places, drawn, table)
    for _ in range(3):
        next(started)
    started.close()
    with open(table, "a") as file:
        file.write("half a row")
    rest = [result.photo for result in predict_photos(estimator, places, drawn, table)]
    assert rest == [result.photo for result in whole[-len(rest) :]]
    assert 1 <= len(rest) < 3
    expected = read(tmp_path / "other.csv")
    for row in expected:
        row["picture"] = row["picture"].replace("other", "drawn")
    assert read(table) == expected


def test_a_stopped_call_with_another_model_or_other_photos_is_not_gone_on_with(
    estimator, tiny_model_path, album, tmp_path
):
    table, places = tmp_path / "faces.csv", find_photos([album])

    def stop_after_three():
        started = predict_photos(estimator, places, table=table)
        for _ in range(3):
            next(started)
        started.close()

    stop_after_three()
    assert [r.photo for r in predict_photos(estimator, places[-1:], table=table)] == [
        str(places[-1])
    ]
    assert {row["photo"] for row in read(table)} == {str(places[-1])}
    stop_after_three()
    other = tmp_path / "other.keras"
    model, metadata = load_model(tiny_model_path)
    save_model(model, other, metadata | {"other": True})
    assert len(list(predict_photos(Estimator(other), places, table=table))) == len(places)


def test_a_stopped_table_of_a_video_is_gone_on_with(estimator, tmp_path):
    video, table = tmp_path / "clip.avi", tmp_path / "faces.csv"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 1, (64, 48))
    for _ in range(4):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    started = predict_photos(estimator, [video], table=table)
    for _ in range(3):
        next(started)
    started.close()
    rest = [result.photo for result in predict_photos(estimator, [video], table=table)]
    assert f"{video} at 0 s" not in rest
    assert [row["photo"] for row in read(table)] == [f"{video} at {i} s" for i in range(4)]


def test_a_finished_table_is_written_anew(estimator, album, tmp_path):
    table = tmp_path / "faces.csv"
    for _ in range(2):
        assert len(list(predict_photos(estimator, [album / "c.png"], table=table))) == 1
    assert len(read(table)) == 1


def test_a_picture_that_cannot_be_written_costs_no_answer(estimator, album, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    [result] = predict_photos(estimator, [album / "b.png"], tmp_path / "drawn")
    assert len(result.estimates) == 1
    assert "b.estimates.png could not be written (No space left" in str(result)
    assert list((tmp_path / "drawn").iterdir()) == []


def test_a_result_is_text_json_and_rows(estimator, album):
    [result] = predict_photos(estimator, [album / "b.png"])
    [estimate], [row] = result.estimates, result.to_rows()
    assert str(result) == f"{album / 'b.png'}: 1 face\n  {estimate}, at {tuple(estimate.box)}"
    content = result.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert set(row) <= set(COLUMNS)
    assert content["faces"][0]["box"] == {name: row[name] for name in estimate.box._fields}


def test_a_device_takes_the_table_too(estimator, album):
    assert len(list(predict_photos(estimator, [album / "c.png"], table="/dev/null"))) == 1


def test_a_table_that_cannot_be_written_is_one_sentence(estimator, album, tmp_path):
    with pytest.raises(AgelibError, match="name a file, in a folder that exists"):
        next(predict_photos(estimator, [album / "c.png"], table=tmp_path / "no" / "faces.csv"))
