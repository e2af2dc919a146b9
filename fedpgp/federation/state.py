"""The state of a federation between two rounds."""

from __future__ import annotations

from dataclasses import dataclass

from fedpgp.core.tree import ParamTree


@dataclass(frozen=True)
class State:
    """All that a federation carries from one round to the next."""

    round: int
    """last round done; 0: none"""
    shared: ParamTree
    """what the server holds"""
    personal: ParamTree
    """what the clients hold, stacked: every entry is (K, ...)"""
