"""Run and sweep folders on disk: rows, checkpoints, indexes, and their copies in an object store."""
