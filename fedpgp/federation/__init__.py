"""Federated training: local updates, aggregation, rounds, checkpoints, and the backends that run them."""
