"""Whole federations in tests: run one to its end, and compare two states bit for bit."""

from __future__ import annotations

import torch

from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.server import Server


def run(job, state=None, backend=None):
    """The results of all rounds; states share what they are written in, so only the last is as it was."""
    own = backend or SerialBackend(threads=1)
    own.load(job)
    server = Server(job, own)
    results = list(server.run(state or server.initial_state()))
    if backend is None:
        own.close()
    return results


def check_same_bits(left, right):
    for tree in ("shared", "personal", "server", "kept", "privacy"):
        here, there = getattr(left, tree), getattr(right, tree)
        assert here.keys() == there.keys()
        assert all(torch.equal(here[key], there[key]) for key in here), tree
