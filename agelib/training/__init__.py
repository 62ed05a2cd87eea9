"""Training: batches, recipe, callbacks, the loop (notebook 04)."""
