import dataclasses

import pytest

from agelib.config import BACKBONES, Config
from agelib.datasets.costs import about, describe_costs, slow_training, training_hours

WIKI = Config.from_profile("wiki")


@pytest.mark.parametrize("gpu", [True, False])
def test_more_work_takes_longer(gpu):
    base = training_hours(WIKI, 30_000, gpu)
    assert training_hours(WIKI, 60_000, gpu) == pytest.approx(2 * base)
    more = {"epochs": 2 * WIKI.epochs, "image_size": 224, "backbone": "EfficientNetB5"}
    for name, value in more.items():
        assert training_hours(dataclasses.replace(WIKI, **{name: value}), 30_000, gpu) > base


def test_a_gpu_is_faster_but_reading_bounds_it():
    assert training_hours(WIKI, 30_000, True) < training_hours(WIKI, 30_000, False) / 20
    small = dataclasses.replace(WIKI, backbone="EfficientNetB0", image_size=32)
    assert training_hours(small, 1500 * 3600, gpu=True) == small.epochs


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_has_an_estimate(backbone):
    assert training_hours(dataclasses.replace(WIKI, backbone=backbone), 1000, gpu=True) > 0


def test_the_sample_needs_no_gpu():
    assert slow_training(Config(), 276) == ""


def test_real_data_without_a_gpu_are_worth_a_warning():
    said = slow_training(WIKI, 30_000)
    assert "days from its beginning (an estimate)" in said
    assert "Change runtime type > GPU" in said
    assert 'profile to "sample"' in said


def test_each_profile_has_its_costs():
    costs = describe_costs()
    assert list(costs.index) == ["sample", "wiki", "imdb-wiki"]
    assert costs.loc["wiki", "download"] == "0.9 GB"
    assert costs.loc["imdb-wiki", "download"] == "7.9 GB"
    assert not costs.isna().any().any()


@pytest.mark.parametrize(
    ("hours", "said"),
    [(0.001, "1 min"), (0.5, "30 min"), (1.4, "84 min"), (3.2, "3 h"), (60, "2 days")],
)
def test_times_are_said_as_people_say_them(hours, said):
    assert about(hours) == said
