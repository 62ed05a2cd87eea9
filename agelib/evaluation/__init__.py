"""Evaluation: scores, tables, runs (notebook 05)."""
