"""Google Drive: mounted, and files copied there and back (notebook 03)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "mounting": ["flush", "mount"],
        "sync": ["holds", "pull", "push", "remove"],
    },
)
