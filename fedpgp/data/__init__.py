"""Data sets: sources, manifest, partition among clients, and evaluation protocol."""
