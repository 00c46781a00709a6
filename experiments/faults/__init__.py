"""Faults done to a small training: kills, and damages of its files (see `experiments.torture`)."""
