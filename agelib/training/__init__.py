"""Training: batches, recipe, callbacks, the loop (notebook 04)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "loop": ["read_history", "train"],
    },
)
