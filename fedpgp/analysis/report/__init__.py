"""What a person reads of a run: tables built from the rows on disk."""
