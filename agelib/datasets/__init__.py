"""Data sets: archives, their labels, your own photos, the sample (notebooks 01 and 07)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "costs": ["describe_costs"],
        "registry": ["describe", "images_folder"],
        "tables": ["count_reasons", "kept_by_group", "read_table"],
    },
)
