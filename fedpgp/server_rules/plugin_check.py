"""Checks of server rules from outside the package: their members, and two dry rounds before any work."""

from typing import Any, get_args

import numpy as np
import torch
from pydantic import PositiveInt

from fedpgp.config import Settings
from fedpgp.core import contract
from fedpgp.core.contract import Contract, Members, form_of
from fedpgp.core.plugins import Plugin
from fedpgp.core.tree import ParamTree, stack
from fedpgp.server_rules.base import ClientHalf, Received, ServerRule, Uploads, Weighting

FEWEST_CLIENTS, ABSENT = 3, 2

OF_CLASS: Members = {
    "name": (str, "a string"),
    "paper": (str, "a string"),
    "settings_type": (type[Settings], "a subclass of fedpgp.config.Settings"),
    "uploads": (Uploads, f"one of {', '.join(get_args(Uploads))}"),
}
OF_INSTANCE: Members = {
    "settings": (Settings, "an instance of settings_type"),
    "weighting": (Weighting, f"one of {', '.join(get_args(Weighting))}"),
    "fewest": (PositiveInt, "a whole number of at least 1"),
}
CALLED = ["__init__", "init", "broadcast", "aggregate", "working_bytes"]


def check_class(plugin: Plugin) -> None:
    """Refuse a class that is no server rule: `ConfigError` with all that is missing or of another type."""
    contract.check_class("federation.server.name", "server rule", plugin, CALLED, OF_CLASS)


def build(target: str, kind: type[ServerRule], settings: Settings) -> ServerRule:
    """The rule with these settings; raise `ConfigError` if it cannot be built, or if a member is missing or wrong."""
    checks = Contract(f"server rule {target}")
    rule = checks.attempt("__init__", lambda: kind(settings))
    checks.refuse(contract.wrong(rule, OF_INSTANCE))
    return rule


def faults(rule: Any) -> list[str]:
    """What keeps an object from being a server rule."""
    members = {**OF_CLASS, **OF_INSTANCE}
    if lacking := [name for name in (*members, *CALLED) if not hasattr(rule, name)]:
        return [f"{form_of(rule)}, which is no server rule: missing {', '.join(lacking)}"]
    return contract.wrong(rule, members)


def dry_run(target: str, rule: ServerRule, shared: ParamTree, private: bool = False) -> None:
    """Two rounds of a few clients that send the shared parameters with some noise.

    With `private` the second is one under differential privacy, in which the rule gets the mean alone.

    Raises `ConfigError` if something raises, is not finite, has other keys, shapes or types, or if the shared
    parameters or the state that the rule was given have changed.
    """
    checks = Contract(f"server rule {target}")
    count = max(FEWEST_CLIENTS, rule.fewest)
    clients, num_clients = np.arange(count) * 2 % (count + ABSENT), count + ABSENT
    clients.sort()
    with torch.random.fork_rng(devices=[]):
        generator = torch.Generator().manual_seed(0)
        size = checks.attempt("working_bytes", lambda: rule.working_bytes(count, shared))
        checks.refuse([] if isinstance(size, int) and size >= 0 else [f"working_bytes returns {size!r}, not bytes"])
        server = checks.tree("init", checks.attempt("init", lambda: rule.init(shared, num_clients)))
        kept: ParamTree = {}
        if isinstance(rule, ClientHalf):
            kept = stack(checks.tree("init_kept", checks.attempt("init_kept", lambda: rule.init_kept(shared))), count)
        for anonymous in (False, private):
            received = _broadcast(checks, rule, server, shared, clients)
            sent = {key: _noisy(value, count, generator) for key, value in shared.items()}
            if isinstance(rule, ClientHalf):
                kept, more = _client_half(checks, rule, kept, received, sent)
                sent |= more
            known = clients[:0] if anonymous else clients
            server, shared = _aggregate(checks, rule, server, shared, known, num_clients, sent, generator)


def _noisy(value: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(count, *value.shape, generator=generator) if value.is_floating_point() else 0
    return (value + noise).to(value.dtype).expand(count, *value.shape).clone()


def _pair(checks: Contract, what: str, value: Any) -> tuple[ParamTree, ParamTree]:
    if not isinstance(value, tuple) or len(value) != 2:
        checks.refuse([f"{what} returns {form_of(value)}, not two dicts of tensors"])
    first, second = (checks.tree(f"part {number} of what {what} returns", one) for number, one in enumerate(value, 1))
    return first, second


def _broadcast(
    checks: Contract, rule: ServerRule, server: ParamTree, shared: ParamTree, clients: np.ndarray
) -> ParamTree:
    """What the clients receive, as the worker merges it."""
    common, own = _pair(
        checks, "broadcast", checks.attempt("broadcast", lambda: rule.broadcast(server, shared, clients))
    )
    if missing := [key for key in shared if key not in common]:
        checks.refuse([f"broadcast does not send {', '.join(missing)} to all clients"])
    checks.like("what broadcast sends to all", {key: common[key] for key in shared}, shared)
    if wrong := [key for key, value in own.items() if value.shape[:1] != clients.shape]:
        checks.refuse([f"broadcast sends {wrong[0]!r} of {form_of(own[wrong[0]])} for {len(clients)} clients"])
    of_each = {key: value[0] for key, value in own.items() if key in shared}
    checks.like("what broadcast sends to one client", of_each, {key: shared[key] for key in of_each})
    return common | own


def _client_half(
    checks: Contract, rule: ClientHalf, kept: ParamTree, received: ParamTree, trained: ParamTree
) -> tuple[ParamTree, ParamTree]:
    """What the clients keep, and what they send in addition to their parameters."""
    correction = checks.attempt("correction", lambda: rule.correction(kept, received))
    known = {key: trained[key] for key in checks.tree("correction", correction) if key in trained}
    checks.like("correction", correction, known)
    count = len(next(iter(trained.values()), ()))
    travel = {key: torch.ones(count) for key in trained}
    what = "after_training"
    result = checks.attempt(what, lambda: rule.after_training(kept, received, trained, travel))
    fresh, more = _pair(checks, what, result)
    if wrong := [key for key, value in more.items() if value.shape[:1] != (count,)]:
        checks.refuse([f"after_training sends {wrong[0]!r} of {form_of(more[wrong[0]])} for {count} clients"])
    return checks.like("what clients keep", fresh, kept), more


def _aggregate(
    checks: Contract,
    rule: ServerRule,
    server: ParamTree,
    shared: ParamTree,
    clients: np.ndarray,
    num_clients: int,
    sent: ParamTree,
    generator: torch.Generator,
) -> tuple[ParamTree, ParamTree]:
    """The next state of the server and the next shared parameters."""
    sums = rule.uploads == "sum"
    received = Received(
        clients=clients,
        weights=torch.ones(len(clients), dtype=torch.float64),
        mean={key: value.double().mean(0).to(value.dtype) for key, value in sent.items()} if sums else {},
        stack={} if sums else sent,
        num_clients=num_clients,
        generator=generator,
    )
    given = [{key: value.clone() for key, value in tree.items()} for tree in (server, shared)]
    result = checks.attempt("aggregate", lambda: rule.aggregate(server, shared, received))
    next_server, next_shared = _pair(checks, "aggregate", result)
    for what, before, after in zip(("server's state", "shared parameters"), given, (server, shared), strict=True):
        if any(not torch.equal(value, before[key]) for key, value in after.items()):
            checks.refuse([f"aggregate changes the {what} that it is given; return new tensors"])
    return (
        checks.like("the server's state from aggregate", next_server, server),
        checks.like("the shared parameters from aggregate", next_shared, shared),
    )
