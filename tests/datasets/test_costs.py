import dataclasses

import pytest

from agelib.backbones import BACKBONES
from agelib.config import PROFILES, Config
from agelib.datasets.costs import describe_costs, slow_training

WIKI = Config.from_profile("wiki")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_has_an_estimate(backbone):
    assert "about" in slow_training(dataclasses.replace(WIKI, backbone=backbone), 100_000)


def test_the_sample_needs_no_gpu():
    assert slow_training(Config(), 276) == ""


def test_real_data_without_a_gpu_are_worth_a_warning():
    message = slow_training(WIKI, 30_000)
    assert "days from its beginning (an estimate)" in message
    assert "Change runtime type > GPU" in message
    assert 'profile to "sample"' in message
    faster = slow_training(dataclasses.replace(WIKI, epochs=2), 30_000)
    assert "hours from its beginning" in faster


def test_a_lite_network_learns_on_cores_in_an_hour():
    lite = {"backbone": "EfficientNetLite0", "crop_size": 80, "epochs": 16}
    message = slow_training(Config.from_profile("wiki", **lite), 28_677)
    assert "would take two cores about an hour from its beginning" in message


def test_the_estimate_of_a_profile_is_the_warning_s():
    assert f"about {describe_costs().loc['wiki', '04 without a GPU']} " in slow_training(
        WIKI, int(38_000 * (1 - WIKI.val_fraction))
    )


def test_each_profile_has_its_costs():
    costs = describe_costs()
    assert list(costs.index) == [name for name in PROFILES if name != "own"]
    assert costs.loc["wiki", "download"] == "0.9 GB"
