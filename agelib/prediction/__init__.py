"""Prediction: photos, estimates, a page, other formats (notebook 06)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "estimator": ["Estimate", "Estimator"],
        "photos": ["find_photos", "read_photo", "read_photos"],
        "results": ["predict_photos"],
    },
)
