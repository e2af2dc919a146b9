"""The state of a federation between two rounds. A module that storage can import without the server."""

from dataclasses import dataclass

from fedpgp.core.tree import ParamTree


@dataclass(frozen=True)
class State:
    """Everything that a federation keeps from one round to the next."""

    round: int
    """last completed round; 0: none"""
    shared: ParamTree
    """the server's parameters"""
    personal: ParamTree
    """the clients' parameters, stacked: every entry is (K, ...)"""
