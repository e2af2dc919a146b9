"""The registry of server rules: creates a rule from its name and a mapping of settings."""

from collections.abc import Mapping
from typing import Any

from fedpgp.config.registry import Registry
from fedpgp.core import plugins
from fedpgp.core.errors import ConfigError
from fedpgp.core.plugins import Plugin, reason
from fedpgp.methods.base import Method
from fedpgp.server_rules.base import ClientHalf, ServerRule
from fedpgp.server_rules.fedavg import FedAvg, Mean
from fedpgp.server_rules.fedavgm import FedAvgM
from fedpgp.server_rules.fedopt import FedAdagrad, FedAdam, FedYogi
from fedpgp.server_rules.scaffold import Scaffold

_BUILT_IN: list[type[ServerRule]] = [FedAvg, Mean, FedAvgM, FedAdam, FedYogi, FedAdagrad, Scaffold]

MEMBERS = ("paper", "settings_type", "uploads", "weighting", "init", "broadcast", "aggregate")


def _check_class(found: Plugin) -> None:
    if lacking := [name for name in MEMBERS if not hasattr(found.kind, name)]:
        raise ConfigError(f"federation.server.name: {found.target} is not a server rule: missing {', '.join(lacking)}")


REGISTRY: Registry[ServerRule] = Registry(
    "federation.server.name", "server rule", plugins.SERVER_RULES, _BUILT_IN, _check_class
)
RULES = REGISTRY.built_in
find, plugin, available = REGISTRY.find, REGISTRY.plugin, REGISTRY.available


def create(name: str, settings: Mapping[str, Any]) -> ServerRule:
    """The rule of that name; raise `ConfigError` if it is unknown, or does not know or cannot use a setting."""
    kind, checked = REGISTRY.settings(name, settings)
    try:
        return kind(checked)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"server rule {name}: __init__ raised {reason(error)}") from error


def check_fit(rule: ServerRule, name: str, method: Method) -> None:
    """Raise `ConfigError` if a method cannot be combined with the rule of that name."""
    setting = f"federation.server.name={name}"
    if isinstance(rule, ClientHalf) and len(method.phases) > 1:
        raise ConfigError(
            f"{setting}: it corrects the gradients of one phase of local training, and method {method.name} has "
            f"{len(method.phases)}; give another method or rule"
        )
