"""Frozen CLIP models: loading, prompt encoding, and cached image features."""
