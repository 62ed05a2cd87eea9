"""Prediction: photos, estimates, a page, other formats (notebook 06)."""
