"""The model: network, file, inference, hardware (notebook 04)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "hardware": ["describe_devices", "has_accelerator"],
        "inference": ["estimate"],
        "network": ["build_model"],
        "saved": ["PRETRAINED", "load_model"],
    },
)
