"""The server rule of a federation and its needs: a method that fits, enough clients in a round, memory of the server.

All are known before work starts.
"""

from fedpgp import server_rules
from fedpgp.config import FederationSettings
from fedpgp.core import memory
from fedpgp.core.errors import ConfigError
from fedpgp.core.text import memory_size
from fedpgp.core.tree import ParamTree, num_bytes
from fedpgp.federation.client import initial_momentum
from fedpgp.federation.cohorts import participants
from fedpgp.methods import plugin_check
from fedpgp.methods.base import HasServerRule, Method
from fedpgp.server_rules.base import ClientHalf, SendsToEach, ServerRule

DEFAULT = FederationSettings().server


def rule_of(method: Method, federation: FederationSettings) -> ServerRule:
    """The method's own rule, or that of `federation.server`; raise `ConfigError` if the two cannot be combined.

    A method that shares nothing, such as `coop`, fits every rule: there is nothing to aggregate, and no rule changes
    its results.
    """
    server = federation.server
    rule = server_rules.create(server.name, server.settings)
    if isinstance(method, HasServerRule):
        if server.name != DEFAULT.name or rule.settings != server_rules.create(DEFAULT.name, {}).settings:
            raise ConfigError(
                f"federation.server.name={server.name}: method {method.name} has a server rule of its own; leave "
                f"federation.server at {DEFAULT.name} with its default settings, or give another method"
            )
        rule = plugin_check.own_rule(method, method.name, federation)
    if isinstance(rule, ClientHalf) and len(method.phases) > 1:
        raise ConfigError(
            f"{named(rule, federation)}: it corrects the gradients of one phase of local training, and method "
            f"{method.name} has {len(method.phases)}; give another method or rule"
        )
    if isinstance(rule, ClientHalf) and federation.keep_momentum:
        raise ConfigError(
            f"federation.keep_momentum=true: {named(rule, federation)} assumes that momentum starts at 0 in each local "
            "update; give federation.keep_momentum=false, or another rule"
        )
    trained = frozenset().union(*(phase.keys for phase in method.phases))
    if isinstance(rule, ClientHalf) and method.shared_keys and not method.shared_keys & trained:
        raise ConfigError(
            f"federation.server.name={server.name}: it corrects the gradients of shared parameters, and method "
            f"{method.name} trains none of them; give another method or rule"
        )
    return rule


def named(rule: ServerRule, federation: FederationSettings) -> str:
    """How messages name a rule: by the setting, unless it is that of the method."""
    own = _of_method(rule, federation)
    return f"the method's server rule {rule.name}" if own else f"federation.server.name={federation.server.name}"


def instead(rule: ServerRule, federation: FederationSettings, other: str) -> str:
    """What messages advise: the `other` rule, unless this one is that of the method."""
    return "another method" if _of_method(rule, federation) else other


def _of_method(rule: ServerRule, federation: FederationSettings) -> bool:
    return federation.server.name == DEFAULT.name != rule.name


def usual_updates(federation: FederationSettings, clients: int) -> int:
    """The expected number of updates in a round, rounded; dropout and Poisson sampling make it differ."""
    poisson = federation.sampling == "poisson"
    trained = federation.participation * clients if poisson else participants(clients, federation.participation)
    return round((1 - federation.dropout) * trained)


def most_updates(federation: FederationSettings, clients: int) -> int:
    """The most updates that can arrive in a round."""
    everyone = federation.everyone_first or federation.sampling == "poisson"
    return clients if everyone else participants(clients, federation.participation)


def server_bytes(rule: ServerRule, federation: FederationSettings, clients: int, shared: ParamTree) -> int:
    """Estimate the bytes of the updates of a round and of what the rule keeps and computes, beside the parameters.

    0 for a rule that needs only a sum and keeps nothing of each client.
    """
    each, most = num_bytes(shared), most_updates(federation, clients)
    kept = num_bytes(rule.init_kept(shared)) if isinstance(rule, ClientHalf) else 0
    stacked = each * most if rule.uploads == "stack" else 0
    copies = 1 if most == clients else 2  # participants send theirs back; a sample's rows are also copied to be sent
    held = rule.held_bytes(clients, shared) if isinstance(rule, SendsToEach) else 0
    return kept * (clients + copies * most) + stacked + held + rule.working_bytes(most, shared)


def describe(rule: ServerRule, federation: FederationSettings, clients: int, shared: ParamTree) -> str | None:
    """Say how much memory the rule takes; None: no memory that grows with the number of clients."""
    size = server_bytes(rule, federation, clients, shared)
    return f"server rule {rule.name}: about {memory_size(size)} of memory" if shared and size else None


def check(rule: ServerRule, federation: FederationSettings, clients: int, shared: ParamTree) -> None:
    """Raise `ConfigError` if too few clients take part in a round, or if this machine has too little memory."""
    setting, few = named(rule, federation), usual_updates(federation, clients)
    if few < rule.fewest and rule.fewest > 1:
        own = ", ".join(f"{key}={value}" for key, value in rule.settings.model_dump().items() if key != "lr")
        raise ConfigError(
            f"{setting}: a round needs the updates of at least {rule.fewest} clients ({own}), and usually has {few} of "
            f"{clients}; change these settings, or let more clients take part"
        )
    needed, there = server_bytes(rule, federation, clients, shared), memory.total()
    if needed > there:
        updates = rule.uploads == "stack" and not isinstance(rule, SendsToEach)
        what = "the updates of" if updates else "what it keeps of"
        count = most_updates(federation, clients) if updates else clients
        other = instead(rule, federation, "a rule that needs only a sum, such as fedavg")
        raise ConfigError(
            f"{setting}: {what} {count:,} clients take about {memory_size(needed)} of memory on the server, and this "
            f"machine has {memory_size(there)}; give fewer clients, or {other}"
        )


def momentum_bytes(method: Method, federation: FederationSettings, tree: ParamTree) -> int:
    """Bytes of the momentum that a client keeps between its participations, with the parameters `tree`."""
    return num_bytes(initial_momentum(method, tree)) if federation.keep_momentum else 0


def check_momentum(method: Method, federation: FederationSettings, clients: int, tree: ParamTree) -> None:
    """Raise `ConfigError` if the momentum that all clients keep does not fit into the memory of this machine."""
    needed, there = clients * momentum_bytes(method, federation, tree), memory.total()
    if needed > there:
        raise ConfigError(
            f"federation.keep_momentum=true: the momentum of {clients:,} clients takes about {memory_size(needed)} of "
            f"memory on the server, and this machine has {memory_size(there)}; give fewer clients, or "
            "federation.keep_momentum=false"
        )
