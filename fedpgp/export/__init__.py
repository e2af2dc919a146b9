"""Learned prompts as files of their own, and as MLflow models."""
