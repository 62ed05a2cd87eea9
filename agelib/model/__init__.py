"""The model: network, file, inference, hardware (notebook 04)."""
