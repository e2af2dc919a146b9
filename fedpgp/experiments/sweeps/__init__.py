"""Sweeps: many trials of one experiment, drawn up front, each run once over its folds (seeds, held-out domains)."""
