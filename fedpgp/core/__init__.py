"""Shared basics: errors, seeding, parameter trees, files and locks, messages, redaction, environment facts."""
