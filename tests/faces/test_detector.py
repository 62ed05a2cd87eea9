import cv2
import numpy as np
import pytest
from skimage import data

from agelib.datasets.sample import draw_portrait
from agelib.faces import detector as detecting
from agelib.faces.crop import PORTRAIT_CANVAS, Face
from agelib.faces.detector import MIN_CONFIDENCE, FaceDetector, iou

ASTRONAUT_BOX = (182, 64, 265, 171)
KEYPOINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")


@pytest.fixture(scope="module")
def detector():
    return FaceDetector()


@pytest.fixture(scope="module")
def pictures():
    # Sizes and contents that one batch might mix up.
    rng = np.random.default_rng(1)
    return [
        data.astronaut(),
        np.zeros((50, 80, 3), np.uint8),
        draw_portrait(30, 1, rng, 150),
        rng.integers(0, 255, (200, 100, 3), np.uint8),
        draw_portrait(60, 0, rng, 233),
        np.full((1, 1, 3), 200, np.uint8),
        data.astronaut()[:, 40:400],
    ]


def centre(face):
    left, top, right, bottom = face.box
    return (left + right) / 2, (top + bottom) / 2


@pytest.mark.parametrize("canvas_size", [PORTRAIT_CANVAS, 640])
def test_the_astronaut_has_one_face_at_the_right_place(detector, canvas_size):
    [found] = detector.detect([data.astronaut()], canvas_size)
    assert len(found) == 1
    # Two pixels of the canvas, and never less than the networks' own scatter.
    atol = max(9, 2 * 512 / canvas_size)
    np.testing.assert_allclose(found[0].box, ASTRONAUT_BOX, atol=atol)
    assert MIN_CONFIDENCE <= found[0].confidence <= 1
    left_eye, right_eye, nose, left_mouth, right_mouth = found[0].landmarks
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert left_eye[1] < nose[1] < left_mouth[1]
    left, top, right, bottom = found[0].box
    assert ((left, top) < found[0].landmarks).all()
    assert (found[0].landmarks < (right, bottom)).all()


def test_plain_numbers_come_back(detector):
    [[face]] = detector.detect([data.astronaut()])
    assert [type(value) for value in (*face.box, face.confidence)] == [float] * 5
    assert face.landmarks.shape == (5, 2)


def test_a_mixed_batch_finds_the_same_boxes_as_one_at_a_time(detector, pictures):
    together = detector.detect(pictures)
    assert [len(found) for found in together] == [1, 0, 1, 0, 1, 0, 1]
    for image, found in zip(pictures, together, strict=True):
        alone = detector.detect([image])[0]
        assert len(alone) == len(found)
        for one, other in zip(found, alone, strict=True):
            np.testing.assert_allclose(one.box, other.box, atol=0.5)
            np.testing.assert_allclose(one.landmarks, other.landmarks, atol=0.5)


def test_more_images_than_a_batch_keep_their_order(detector, pictures, monkeypatch):
    monkeypatch.setattr(detecting, "BATCH", 2)
    counts = [len(found) for found in detector.detect(pictures)]
    assert counts == [1, 0, 1, 0, 1, 0, 1]


def test_a_wide_and_a_tall_photo_keep_their_proportions(detector):
    astronaut = data.astronaut()
    wide = np.zeros((512, 1200, 3), np.uint8)
    wide[:, 600:1112] = astronaut
    tall = np.zeros((1200, 512, 3), np.uint8)
    tall[600:1112] = astronaut
    [[in_wide], [in_tall]] = detector.detect([wide, tall], 320)
    left, top, right, bottom = ASTRONAUT_BOX
    np.testing.assert_allclose(in_wide.box, (left + 600, top, right + 600, bottom), atol=12)
    np.testing.assert_allclose(in_tall.box, (left, top + 600, right, bottom + 600), atol=12)


@pytest.mark.parametrize("shape", [(200, 200, 3), (1, 1, 3), (1, 900, 3), (900, 1, 3)])
def test_an_image_without_a_face_gives_an_empty_list(detector, shape):
    assert detector.detect([np.full(shape, 128, np.uint8)]) == [[]]


def test_no_images_give_no_lists(detector):
    assert detector.detect([]) == []


def test_a_face_too_small_for_the_first_canvas_is_found_on_the_second(detector):
    image = np.full((400, 400, 3), 90, np.uint8)
    image[150:260, 150:260] = cv2.resize(data.astronaut()[:320, 60:380], (110, 110))
    [[face]] = detector.detect([image])
    assert centre(face) == pytest.approx((150 + 164 / 2.9, 150 + 118 / 2.9), abs=6)


def test_a_face_that_the_frame_cuts_is_found_on_a_larger_canvas(detector):
    photo = data.astronaut()[20:200, 190:330]
    [[face]] = detector.detect_in_photos([photo], 160)
    np.testing.assert_allclose(face.box, np.subtract(ASTRONAUT_BOX, (190, 20) * 2), atol=12)


def test_photos_that_were_looked_at_before_change_nothing_in_cleaning(detector, pictures):
    for canvas_size in (PORTRAIT_CANVAS, 2 * PORTRAIT_CANVAS):
        detector.detect_in_photos(pictures, canvas_size, turns=1)
    untouched = FaceDetector().detect(pictures)
    for found, expected in zip(detector.detect(pictures), untouched, strict=True):
        assert [each.box for each in found] == [each.box for each in expected]


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_faces_of_a_turned_photo_are_in_the_pixels_of_that(detector, turns):
    [[expected]] = detector.detect_in_photos([data.astronaut()], 320)
    photo = np.rot90(data.astronaut(), -turns)
    [[face]] = detector.detect_in_photos([photo], 320, turns)
    np.testing.assert_allclose(face.box, expected.box, atol=0.5)
    np.testing.assert_allclose(face.landmarks, expected.landmarks, atol=0.5)


@pytest.mark.parametrize(
    ("box", "share"),
    [((0, 0, 10, 10), 1), ((5, 0, 15, 10), 1 / 3), ((2, 2, 7, 7), 1 / 4), ((10, 0, 20, 10), 0)],
)
def test_iou_is_the_common_area_over_that_of_both(box, share):
    one, other = (Face(each, 1.0, np.zeros((5, 2))) for each in ((0, 0, 10, 10), box))
    assert iou(one, other) == iou(other, one) == pytest.approx(share)


def test_every_face_of_a_crowd_is_found_most_confident_first(detector):
    rng = np.random.default_rng(5)
    crowd = np.zeros((480, 640, 3), np.uint8)
    places = [(x, y) for y in range(0, 480, 160) for x in range(0, 640, 160)]
    for i, (x, y) in enumerate(places):
        crowd[y : y + 160, x : x + 160] = draw_portrait(30, i % 2, rng, 160, 0.5)
    [found] = detector.detect([crowd], 640)
    cells = {(int(x // 160) * 160, int(y // 160) * 160) for x, y in (centre(f) for f in found)}
    assert cells == set(places)
    assert len(found) == len(places)
    confidences = [face.confidence for face in found]
    assert confidences == sorted(confidences, reverse=True)


def test_the_box_of_a_face_that_the_border_cuts_reaches_outside(detector):
    [[face]] = detector.detect([data.astronaut()[105:, 190:]], 320)
    assert face.box[0] < 0
    assert face.box[1] < 0
    np.testing.assert_allclose(face.box, np.subtract(ASTRONAUT_BOX, (190, 105) * 2), atol=15)


# Parts of the astronaut (left, top, right, bottom), and the box that cleaning finds in each.
BOXES = {
    (0, 0, 512, 512): (174.49, 60.27, 255.07, 162.14),
    (40, 0, 400, 512): (136.76, 59.62, 217.92, 162.76),
    (60, 0, 380, 320): (118.49, 65.16, 200.76, 167.52),
    (130, 20, 330, 230): (50.23, 44.94, 134.40, 151.57),
}


def test_the_boxes_of_cleaning_stay_where_they_were(detector):
    photos = [data.astronaut()[top:bottom, left:right] for left, top, right, bottom in BOXES]
    for [face], expected in zip(detector.detect(photos), BOXES.values(), strict=True):
        np.testing.assert_allclose(face.box, expected, atol=0.5)


def test_the_boxes_of_cleaning_are_those_of_the_package_at_full_size(detector):
    from mtcnn import MTCNN

    rng, plain = np.random.default_rng(1), MTCNN()
    photos = [data.astronaut()[top:bottom, left:right] for left, top, right, bottom in BOXES]
    photos += [draw_portrait(5 + 6 * i, i % 2, rng, 100 + 20 * i) for i in range(12)]
    for photo, [face] in zip(photos, detector.detect(photos), strict=True):
        [expected] = plain.detect_faces(photo, box_format="xyxy")
        # An eighth of the face: the canvas shows it with 20 to 50 pixels.
        np.testing.assert_allclose(face.box, expected["box"], atol=face.size / 8)


def test_the_detector_is_the_mtcnn_of_the_package(detector):
    # The same photo through the package's own cascade.
    from mtcnn import MTCNN

    image = cv2.resize(data.astronaut(), (192, 192), interpolation=cv2.INTER_AREA)
    [expected] = MTCNN().detect_faces(image, box_format="xyxy")
    [[found]] = detector.detect([image], 192)
    np.testing.assert_allclose(found.box, expected["box"], atol=6)
    points = [expected["keypoints"][name] for name in KEYPOINTS]
    np.testing.assert_allclose(found.landmarks, points, atol=6)
