"""Backends that run the workers: in this process or on Ray actors, with equal results."""
