"""Faces: images, crops, the detector, shards, cleaning (notebook 02)."""
