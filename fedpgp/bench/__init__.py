"""Repeatable measurements: each module is a command `fedpgp bench NAME` that prints a table and, with --json, JSON."""
