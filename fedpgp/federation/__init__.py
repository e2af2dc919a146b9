"""Federated training: local updates, aggregation, rounds, evaluation, and the backends that run them."""
