"""Images as rows, and who holds which of them: manifest, partition, protocol."""
