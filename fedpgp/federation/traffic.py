"""What one client sends and receives in a round, by its server rule, and how many bytes that is."""

import numpy as np
import torch

from fedpgp.core.tree import ParamTree, num_bytes, repeated, stack, without
from fedpgp.server_rules.base import ClientHalf, Received, SendsToEach, ServerRule


def sent(rule: ServerRule, server: ParamTree, shared: ParamTree) -> ParamTree:
    """What a client sends: its shared parameters, and what a rule with a client's half adds."""
    if not isinstance(rule, ClientHalf):
        return shared
    common, own = rule.broadcast(server, shared, np.arange(1))
    received, travel = {**stack(common, 1), **own}, dict.fromkeys(shared, torch.ones(1))
    more = rule.after_training(stack(rule.init_kept(shared), 1), received, stack(shared, 1), travel)[1]
    return shared | {key: value[0] for key, value in more.items()}


def bytes_down(rule: ServerRule, server: ParamTree, shared: ParamTree, padded: bool = False) -> int:
    """Bytes that the server sends to the first client; `padded`: as many as it may send later (see `SendsToEach`)."""
    common, own = rule.broadcast(server, shared, np.arange(1))
    alone = rule.sent_bytes(own) if isinstance(rule, SendsToEach) and not padded else num_bytes(own)
    return num_bytes(without(common, own)) + alone


def after_a_round(rule: ServerRule, shared: ParamTree, clients: int) -> ParamTree:
    """The rule's state after a round in which so many clients, all of them, sent back what they were sent."""
    server = rule.init(shared, clients)
    uploads = sent(rule, server, shared)
    received = Received(
        clients=np.arange(clients),
        weights=torch.ones(clients, dtype=torch.float64),
        mean=uploads if rule.uploads == "sum" else {},
        stack=repeated(uploads, clients) if rule.uploads == "stack" else {},
        num_clients=clients,
        generator=torch.Generator().manual_seed(0),
    )
    return rule.aggregate(server, shared, received)[0]
