import numpy as np
import pandas as pd
import pytest
from conftest import can_be_saved, sure, truth
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle
from PIL import Image

from agelib import plots
from agelib.evaluation.scores import breakdown, metrics
from agelib.evaluation.tables import estimates_table
from agelib.faces.crop import Face
from agelib.labels import BRANCH_NAMES, age_branch
from agelib.prediction.estimator import Box, Estimate

NOISE = [np.random.default_rng(i).integers(0, 255, (40 + i, 50, 3), np.uint8) for i in range(10)]


def estimate_at(left, top, side=80, age=33):
    ages = np.zeros(85)
    ages[age - 1] = 1
    return Estimate(
        face=Face((left, top, left + side, top + side), 0.99, np.zeros((5, 2))),
        box=Box(round(left), round(top), round(left + side), round(top + side)),
        ages=ages,
        branches=np.eye(5)[age_branch(age)],
        genders=np.array([0.1, 0.9]),
    )


def history(epochs):
    columns = ("loss", "age_branch_accuracy", "gender_accuracy")
    values = {f"{p}{name}": np.linspace(0.9, 0.1, epochs) for p in ("", "val_") for name in columns}
    best = np.arange(epochs) == epochs // 2
    return pd.DataFrame({"epoch": np.arange(epochs) + 1, **values, "best": best})


FIGURES = {
    "montage": lambda: plots.montage(NOISE, [str(i) for i in range(10)]),
    "montage of one": lambda: plots.montage(NOISE[:1]),
    "montage of none": lambda: plots.montage([]),
    "reasons": lambda: plots.reasons({"no_face": 3, "kept": 1200, "age": 40}),
    "reasons, nothing kept": lambda: plots.reasons({"kept": 0}),
    "age histogram": lambda: plots.age_histogram(np.array([1, 30, 85]), np.array([0, 1, 1])),
    "age histogram of one gender": lambda: plots.age_histogram(np.array([30]), np.array([0])),
    "learning curves": lambda: plots.learning_curves(history(5)),
    "learning curves of one epoch": lambda: plots.learning_curves(history(1)),
    "age distributions": lambda: plots.age_distributions([estimate_at(0, 0), estimate_at(9, 9)]),
    "annotate": lambda: plots.annotate(NOISE[0], [estimate_at(5, 5, 20)]),
    "story": lambda: plots.story(NOISE[0], NOISE[1], estimate_at(5, 5, 20)),
    "annotate without faces": lambda: plots.annotate(NOISE[0], []),
}


def texts_of(figure):
    found = []
    for axis in figure.axes:
        found += [axis.get_title(), axis.get_xlabel(), axis.get_ylabel()]
        found += [text.get_text() for text in axis.texts]
        found += [label.get_text() for label in (*axis.get_xticklabels(), *axis.get_yticklabels())]
        legend = axis.get_legend()
        found += [text.get_text() for text in legend.get_texts()] if legend else []
    return found


def pixels_of(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


# All of them


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_returned_that_can_be_saved_and_pyplot_knows_nothing_of_it(name, tmp_path):
    assert can_be_saved(FIGURES[name](), tmp_path / "figure.png")


# One by one


def test_a_montage_shows_every_image_with_its_title():
    figure = plots.montage(NOISE, [f"face {i}" for i in range(10)])
    shown = [axis for axis in figure.axes if axis.images]
    assert len(figure.axes) == 12
    assert [axis.get_title() for axis in shown] == [f"face {i}" for i in range(10)]
    for axis, image in zip(shown, NOISE, strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), image)
    assert not any(axis.axison for axis in figure.axes)


def test_a_montage_shows_red_as_red():
    red = np.full((20, 20, 3), (255, 0, 0), np.uint8)
    pixels = pixels_of(plots.montage([red])).reshape(-1, 3)
    assert (pixels == (255, 0, 0)).all(axis=1).mean() > 0.5


def test_reasons_name_every_count_with_the_kept_first():
    figure = plots.reasons({"no_face": 3, "kept": 12345, "age": 40})
    texts = texts_of(figure)
    assert {"12,345", "40", "3"} <= set(texts)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["kept", "age", "no_face"]
    assert figure.axes[0].yaxis_inverted()


def test_the_histogram_counts_the_faces_of_every_branch_and_gender():
    ages = np.array([1, 13, 14, 39, 40, 85, 85])
    figure = plots.age_histogram(ages, np.array([0, 0, 0, 1, 1, 1, 1]))
    texts = texts_of(figure)
    expected = zip(BRANCH_NAMES, (2, 1, 1, 1, 2), strict=True)
    assert {f"{name}\n{count}" for name, count in expected} <= set(texts)
    assert {"Male", "Female", "age", "faces"} <= set(texts)
    bars = [bar for bar in figure.axes[0].patches if bar.get_height()]
    assert sum(bar.get_height() for bar in bars) == len(ages)


def test_learning_curves_show_train_and_val_of_three_measures():
    figure = plots.learning_curves(history(5))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["loss", "age branch accuracy", "gender accuracy"]
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["train", "val", "best epoch"]
    for axis in figure.axes:
        assert [line.get_label() for line in axis.lines] == ["train", "val", "best epoch"]
        train, val, best = (line.get_xdata() for line in axis.lines)
        assert train.tolist() == val.tolist() == [1, 2, 3, 4, 5]
        assert set(best) == {3}


def test_age_distributions_name_every_face():
    figure = plots.age_distributions([estimate_at(0, 0, age=20), estimate_at(0, 0, age=70)])
    assert {"face 1: 20 years", "face 2: 70 years"} <= set(texts_of(figure))


def test_a_story_ends_with_the_answer_and_shows_its_crop():
    figure = plots.story(NOISE[0], NOISE[1], estimate_at(5, 5, 20, age=33))
    texts = texts_of(figure)
    assert "3. EfficientNet: Female (90%), 33 years (33-33), branch 24-39 (100%)" in texts
    assert f"2. the crop, {NOISE[1].shape[1]} pixels" in texts
    photo, face, _ = figure.axes
    assert np.array_equal(face.images[0].get_array(), NOISE[1])
    [box] = [patch for patch in photo.patches if isinstance(patch, Rectangle)]
    assert (*box.get_xy(), box.get_width(), box.get_height()) == (5, 5, 20, 20)


def test_the_titles_of_a_story_are_inside_the_picture_and_those_of_a_row_at_one_height():
    figure = plots.story(NOISE[0], NOISE[1], estimate_at(5, 5, 20, age=33))
    FigureCanvasAgg(figure).draw()
    photo, face, ages = (axis.title.get_window_extent() for axis in figure.axes)
    assert round(photo.y0) == round(face.y0)
    assert ages.x0 >= 0
    assert ages.x1 <= figure.bbox.width


# Annotated photos


@pytest.mark.parametrize("shape", [(512, 512), (300, 400), (1200, 90), (60, 60), (3000, 4000)])
def test_an_annotated_photo_keeps_its_shape_and_is_large_enough_to_read(shape, tmp_path):
    height, width = shape
    photo = np.full((height, width, 3), 200, np.uint8)
    figure = plots.annotate(photo, [estimate_at(width / 4, height / 4, height / 4)])
    figure.savefig(tmp_path / "photo.png")
    with Image.open(tmp_path / "photo.png") as image:
        saved = image.size
    assert saved[0] / saved[1] == pytest.approx(width / height, rel=0.02)
    assert 640 <= max(saved) <= 1600


def test_an_annotated_photo_shows_all_of_the_photo():
    photo = np.zeros((100, 100, 3), np.uint8)
    photo[:50, :50], photo[50:, 50:] = (255, 0, 0), (0, 0, 255)
    pixels = pixels_of(plots.annotate(photo, []))
    assert pixels[5, 5].tolist() == [255, 0, 0]
    assert pixels[-5, -5].tolist() == [0, 0, 255]


def test_every_face_has_a_box_and_a_label():
    photo = np.zeros((600, 800, 3), np.uint8)
    estimates = [estimate_at(100, 200, age=33), estimate_at(500, 300, age=70)]
    [axis] = plots.annotate(photo, estimates).axes
    boxes = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
    assert [box.get_xy() for box in boxes] == [(100, 200), (500, 300)]
    assert [(box.get_width(), box.get_height()) for box in boxes] == [(80, 80)] * 2
    assert [text.get_text() for text in axis.texts] == [
        "1: Female (90%)\n33 years (33-33)\nbranch 24-39 (100%)",
        "2: Female (90%)\n70 years (70-70)\nbranch 56-85 (100%)",
    ]


def test_the_label_of_a_single_face_needs_no_number():
    photo = np.zeros((600, 800, 3), np.uint8)
    [axis] = plots.annotate(photo, [estimate_at(100, 200, age=33)]).axes
    assert [text.get_text() for text in axis.texts] == [
        "Female (90%)\n33 years (33-33)\nbranch 24-39 (100%)"
    ]


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (2, 5_000), (1, 1)])
def test_a_photo_of_a_line_can_be_saved(shape, tmp_path):
    plots.annotate(np.zeros((*shape, 3), np.uint8), []).savefig(tmp_path / "line.png")
    with Image.open(tmp_path / "line.png") as image:
        assert min(image.size) >= 1


def test_boxes_keep_their_place_on_a_photo_scaled_down():
    photo = np.zeros((2000, 3200, 3), np.uint8)
    photo[:, 640:] = 0, 0, 255
    pixels = pixels_of(plots.annotate(photo, [estimate_at(640, 400, age=33)]))
    assert pixels.shape[:2] == (1000, 1600)
    assert [pixels[600, x, 2] for x in (310, 330)] == [0, 255]
    # The box is 80 pixels wide and high.
    assert [pixels[220, x, 0] > 200 for x in (310, 320, 340, 360, 370)] == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("shape", [(600, 800), (400, 1600), (300, 240)])
@pytest.mark.parametrize(
    ("x", "y"), [(0.4, 0.4), (0, 0), (-0.05, -0.05), (0.85, 0.02), (0.85, 0.8)]
)
def test_a_label_lies_inside_the_picture(shape, x, y):
    height, width = shape
    photo = np.zeros((height, width, 3), np.uint8)
    figure = plots.annotate(photo, [estimate_at(x * width, y * height, 0.2 * height)])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    [label] = figure.axes[0].texts
    extent = label.get_window_extent(canvas.get_renderer())
    wide, high = canvas.get_width_height()
    assert extent.x0 >= -1
    assert extent.y0 >= -1
    assert extent.x1 <= wide + 1
    assert extent.y1 <= high + 1


def score_faces(faces, outputs):
    return metrics(faces, outputs) | {"groups": breakdown(faces, outputs)}


def report():
    genders = ([0, 1, 0, 1, 1], [0, 1, 1, 1, 1])
    return score_faces(
        truth([5, 20, 30, 30, 60], genders[0]), sure([5, 30, 30, 30, 45], genders[1])
    )


def estimates(ages=(5, 20, 30, 60), said=(8, 25, 26, 60)):
    right = np.array(ages) % 20 == 0
    return pd.DataFrame(
        {
            "age": ages,
            "estimated_age": said,
            "years_off": np.subtract(said, ages),
            "age_branch": "24-39",
            "estimated_branch": np.where(right, "24-39", "40-55"),
            "branch_confidence": 0.6,
            "gender": "Male",
            "estimated_gender": "Male",
            "gender_confidence": 0.9,
        }
    )


def of_ranges():
    true = truth([3, 10], [0, 1], [9, 39])
    true.paths = ["a.jpg", "b.jpg"]
    return true, sure([5, 50], [0, 1])


SCORE_FIGURES = {
    "confusion of ranges": lambda: plots.confusion(score_faces(*of_ranges())),
    "groups of ranges": lambda: plots.groups(score_faces(*of_ranges())),
    "age errors of ranges": lambda: plots.age_errors(estimates_table(*of_ranges())),
    "reliability of ranges": lambda: plots.reliability_diagram(estimates_table(*of_ranges())),
    "confusion": lambda: plots.confusion(report()),
    "age errors": lambda: plots.age_errors(estimates()),
    "age errors of one face": lambda: plots.age_errors(estimates([85], [1])),
    "reliability": lambda: plots.reliability_diagram(estimates()),
    "reliability of one face": lambda: plots.reliability_diagram(estimates([20], [20])),
    "groups": lambda: plots.groups(report()),
}


@pytest.mark.parametrize("name", SCORE_FIGURES)
def test_a_figure_of_scores_can_be_saved_and_pyplot_knows_nothing_of_it(name, tmp_path):
    assert can_be_saved(SCORE_FIGURES[name](), tmp_path / "figure.png")


@pytest.mark.parametrize("name", FIGURES | SCORE_FIGURES)
def test_a_figure_is_narrow_enough_to_read_on_a_phone(name):
    figure = (FIGURES | SCORE_FIGURES)[name]()
    assert name.startswith("annotate") or figure.get_figwidth() <= 7.5


def test_age_errors_are_means_over_five_years_of_true_age():
    by_age, _ = plots.age_errors(estimates([1, 5, 6, 85], [3, 1, 12, 80])).axes
    bars = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in by_age.patches}
    assert bars == {3: 3, 8: 6, 83: 5}
    x, y = by_age.lines[0].get_data()
    assert (list(x), list(y)) == ([3, 8, 83], [-1, 6, -5])


def test_the_cumulative_score_counts_faces_within_so_many_years():
    _, within = plots.age_errors(estimates()).axes
    shares = dict(zip(*within.lines[0].get_data(), strict=True))
    assert [shares[years] for years in (0, 2, 3, 4, 5, 20)] == [0.25, 0.25, 0.5, 0.75, 1, 1]


def test_reliability_sets_sureness_against_what_is_right():
    branch, gender = plots.reliability_diagram(estimates()).axes
    assert branch.get_title() == "age branch: calibration error 10.0%"  # 0.6 sure, 0.5 right
    assert gender.get_title() == "gender: calibration error 10.0%"
    assert branch.collections[0].get_offsets().tolist() == [[pytest.approx(0.6), 0.5]]
    assert gender.collections[0].get_offsets().tolist() == [[pytest.approx(0.9), 1.0]]


def test_every_group_has_a_row_with_its_number_of_faces():
    figure = plots.groups(report())
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[:2] == ["1-13 Male  (1)", "14-23 Female  (1)"]
    assert len(names) == len(report()["groups"]) == len(figure.axes[1].lines[0].get_xdata())


def test_confusions_show_counts_and_shares_of_the_true_class():
    figure = plots.confusion(report())
    branches, genders = figure.axes
    assert branches.get_title() == "age branch: 60.0% right"
    assert genders.get_title() == "gender: 80.0% right"
    cells = {tuple(map(int, text.get_position())): text.get_text() for text in branches.texts}
    assert cells[2, 2] == "100%\n2"
    assert cells[2, 1] == "100%\n1"
    assert cells[1, 1] == "0%\n0"
    assert (branches.get_xlabel(), branches.get_ylabel()) == ("estimated", "true")
    assert [label.get_text() for label in branches.get_yticklabels()] == list(BRANCH_NAMES)


def test_a_class_that_does_not_occur_leaves_its_row_empty():
    branches = plots.confusion(report()).axes[0]
    row = [text.get_text() for text in branches.texts if text.get_position()[1] == 3]
    assert row == ["0%\n0"] * 5


def test_ranges_show_the_share_of_estimates_inside_and_years_to_the_nearer_end():
    ages, genders = plots.groups(score_faces(*of_ranges())).axes
    assert (ages.get_title(), genders.get_title()) == ("age range", "gender")
    by_age, _ = plots.age_errors(estimates_table(*of_ranges())).axes
    x, y = by_age.lines[0].get_data()
    assert (list(x), list(y)) == ([8, 23], [0, 11])
