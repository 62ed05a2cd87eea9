"""Evaluation: scores, tables, runs (notebook 05)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "tables": [
            "compare_table",
            "groups_table",
            "name_worst",
            "recall_table",
            "results_table",
            "calibration_table",
        ],
    },
)
