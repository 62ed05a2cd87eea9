from agelib.backbones import BACKBONES
from agelib.config import Config


def test_every_backbone_is_accepted():
    lite = [f"EfficientNetLite{i}" for i in range(5)]
    assert {*(f"EfficientNetB{i}" for i in range(8)), *lite} <= BACKBONES.keys()
    assert [Config(backbone=name).backbone for name in BACKBONES] == list(BACKBONES)


def test_imagenet_weights_that_ship_are_where_a_backbone_says():
    files = [backbone.imagenet for backbone in BACKBONES.values() if backbone.imagenet]
    assert files
    assert all(file.is_file() for file in files)
