import numpy as np
import pytest
from skimage import data

from agelib.faces.crop import Face
from agelib.faces.detector import FaceDetector
from agelib.prediction.detection import PHOTO_CANVAS, find_faces, turn_face

ASTRONAUT_BOX = (182, 64, 265, 171)


@pytest.fixture(scope="module")
def detector():
    return FaceDetector()


def paste(photo, picture, left, top):
    photo[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return photo


def test_a_face_is_found_upright_in_a_photo_of_any_shape(detector):
    portrait = data.astronaut()[:320, 60:380]
    wide = paste(np.full((400, 1200, 3), 90, np.uint8), portrait, 800, 40)
    tall = paste(np.full((1200, 400, 3), 90, np.uint8), portrait, 40, 800)
    [[in_wide], [in_tall], [alone]] = find_faces(detector, [wide, tall, portrait])
    expected = np.subtract(ASTRONAUT_BOX, (60, 0, 60, 0))
    for found, left, top in ((in_wide, 800, 40), (in_tall, 40, 800), (alone, 0, 0)):
        np.testing.assert_allclose(
            found.face.box, np.add(expected, (left, top, left, top)), atol=12
        )
        assert (found.turns, found.sideways) == (0, False)


def test_the_faces_of_a_photo_in_any_batch_are_the_same(detector):
    photos = [data.astronaut(), data.coffee(), np.rot90(data.astronaut(), 2)]
    together = find_faces(detector, photos)
    for photo, found in zip(photos, together, strict=True):
        [alone] = find_faces(detector, [photo])
        assert [each.turns for each in alone] == [each.turns for each in found]
        for one, other in zip(alone, found, strict=True):
            np.testing.assert_allclose(one.face.box, other.face.box, atol=0.5)
    assert [len(found) for found in together] == [1, 0, 1]


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_photo_without_an_upright_face_is_turned(detector, turns):
    [[found]] = find_faces(detector, [np.rot90(data.astronaut(), turns)])
    assert found.turns == 4 - turns
    np.testing.assert_allclose(found.face.box, ASTRONAUT_BOX, atol=12)


def test_a_photo_with_an_upright_face_is_not_turned_for_another(detector):
    both = np.hstack([data.astronaut(), data.astronaut()[::-1]])
    [found] = find_faces(detector, [both])
    assert [each.turns for each in found] == [0]
    assert found[0].face.box[2] < 512


def test_what_only_one_look_takes_for_a_face_is_none(detector):
    # A part of the motorcycle that MTCNN is fairly sure of.
    photo = data.stereo_motorcycle()[0][:440, 140:580]
    assert len(detector.detect_in_photos([photo], PHOTO_CANVAS)[0]) > 0
    assert find_faces(detector, [photo]) == [[]]


@pytest.mark.parametrize("edge", ["left", "top", "right", "bottom"])
def test_a_large_face_that_the_frame_cuts_is_found(detector, edge):
    left, top, right, bottom = ASTRONAUT_BOX
    part = {
        "left": np.s_[20:220, left + 20 : right + 90],
        "top": np.s_[top + 25 : bottom + 90, 140:310],
        "right": np.s_[20:220, left - 90 : right - 20],
        "bottom": np.s_[top - 60 : bottom - 25, 140:310],
    }[edge]
    [[found]] = find_faces(detector, [data.astronaut()[part]])
    expected = np.subtract(ASTRONAUT_BOX, (part[1].start, part[0].start) * 2)
    np.testing.assert_allclose(found.face.box, expected, atol=20)


def test_a_face_turned_four_times_is_where_it_was(detector):
    face = Face((1.0, 2.0, 30.0, 50.0), 0.9, np.arange(10.0).reshape(5, 2))
    once = turn_face(face, 1, (200, 100, 3))
    assert once.box == (2.0, 70.0, 50.0, 99.0)
    np.testing.assert_array_equal(once.landmarks[0], [1, 100])
    back = turn_face(once, 3, (100, 200, 3))
    assert back.box == face.box
    np.testing.assert_array_equal(back.landmarks, face.landmarks)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 900, 3), (9000, 1, 3), (200, 300, 3)])
def test_a_photo_without_a_face_gives_an_empty_list(detector, shape):
    assert find_faces(detector, [np.full(shape, 128, np.uint8)]) == [[]]


def test_no_photos_give_no_lists(detector):
    assert find_faces(detector, []) == []
