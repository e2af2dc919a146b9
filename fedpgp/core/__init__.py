"""What every other package may use: errors, seeding, parameter trees, files and locks, redaction, environment facts."""
