"""The registry of server rules: creates a rule from its name and a mapping of settings."""

from collections.abc import Mapping
from typing import Any

from fedpgp.config.registry import Registry
from fedpgp.core import plugins
from fedpgp.core.errors import ConfigError
from fedpgp.methods.base import Method
from fedpgp.server_rules import plugin_check
from fedpgp.server_rules.base import ClientHalf, ServerRule
from fedpgp.server_rules.coordinate_wise import Median, TrimmedMean
from fedpgp.server_rules.fedavg import FedAvg, Mean
from fedpgp.server_rules.fedavgm import FedAvgM
from fedpgp.server_rules.fedopt import FedAdagrad, FedAdam, FedYogi
from fedpgp.server_rules.geometric_median import GeometricMedian
from fedpgp.server_rules.krum import Krum, MultiKrum
from fedpgp.server_rules.scaffold import Scaffold

_BUILT_IN: list[type[ServerRule]] = [
    FedAvg, Mean, FedAvgM, FedAdam, FedYogi, FedAdagrad, Scaffold, Median, TrimmedMean, Krum, MultiKrum,
    GeometricMedian,
]  # fmt: skip

REGISTRY: Registry[ServerRule] = Registry(
    "federation.server.name", "server rule", plugins.SERVER_RULES, _BUILT_IN, plugin_check.check_class
)
find, plugin, available = REGISTRY.find, REGISTRY.plugin, REGISTRY.available


def create(name: str, settings: Mapping[str, Any]) -> ServerRule:
    """The rule of that name; raise `ConfigError` if it is unknown, or does not know or cannot use a setting."""
    kind, checked = REGISTRY.settings(name, settings)
    return kind(checked) if plugin(name) is None else plugin_check.build(name, kind, checked)


def check_fit(rule: ServerRule, name: str, method: Method) -> None:
    """Raise `ConfigError` if a method cannot be combined with the rule of that name.

    A method that shares nothing, such as `coop`, fits every rule: there is nothing to aggregate, and no rule changes
    its results.
    """
    if isinstance(rule, ClientHalf) and len(method.phases) > 1:
        raise ConfigError(
            f"federation.server.name={name}: it corrects the gradients of one phase of local training, and method "
            f"{method.name} has {len(method.phases)}; give another method or rule"
        )
