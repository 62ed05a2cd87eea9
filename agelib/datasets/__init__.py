"""Data sets: archives, their labels, your own photos, the sample (notebooks 01 and 07)."""
