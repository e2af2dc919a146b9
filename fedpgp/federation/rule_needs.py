"""What a server rule needs of a federation: enough clients in a round, and memory of the process that runs the rounds.

Both are known before work starts.
"""

from fedpgp.config import FederationSettings
from fedpgp.core import memory
from fedpgp.core.errors import ConfigError
from fedpgp.core.text import memory_size
from fedpgp.core.tree import ParamTree, num_bytes
from fedpgp.federation.server import participants
from fedpgp.server_rules.base import ClientHalf, ServerRule


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
    return kept * (clients + copies * most) + stacked + rule.working_bytes(most, shared)


def describe(rule: ServerRule, federation: FederationSettings, clients: int, shared: ParamTree) -> str | None:
    """Say how much memory the rule takes; None: no memory that grows with the number of clients."""
    size = server_bytes(rule, federation, clients, shared)
    return f"server rule {federation.server.name}: about {memory_size(size)} of memory" if shared and size else None


def check(rule: ServerRule, federation: FederationSettings, clients: int, shared: ParamTree) -> None:
    """Raise `ConfigError` if too few clients take part in a round, or if this machine has too little memory."""
    setting, few = f"federation.server.name={federation.server.name}", usual_updates(federation, clients)
    if few < rule.fewest and rule.fewest > 1:
        own = ", ".join(f"{key}={value}" for key, value in federation.server.settings.items() if key != "lr")
        raise ConfigError(
            f"{setting}: a round needs the updates of at least {rule.fewest} clients ({own}), and usually has {few} of "
            f"{clients}; change these settings, or let more clients take part"
        )
    needed, there = server_bytes(rule, federation, clients, shared), memory.total()
    if needed > there:
        what = "the updates of" if rule.uploads == "stack" else "what it keeps of"
        count = most_updates(federation, clients) if rule.uploads == "stack" else clients
        raise ConfigError(
            f"{setting}: {what} {count:,} clients take about {memory_size(needed)} of memory on the server, and this "
            f"machine has {memory_size(there)}; give fewer clients, or a rule that needs only a sum, such as fedavg"
        )
