"""Measurements that anyone can repeat: each prints a table, and with --json one object as its last line."""
