"""Faces: images, crops, the detector, shards, cleaning (notebook 02)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "crop": ["choose_face", "crop_face"],
        "detector": ["FaceDetector"],
        "images": ["read_image"],
        "shards": ["FaceSet"],
    },
)
