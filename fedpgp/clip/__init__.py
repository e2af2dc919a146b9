"""Frozen CLIP models: loading, encoding prompts, and image features that are extracted once."""
