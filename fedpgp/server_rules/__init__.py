"""The registry of server rules: creates a rule from its name and a mapping of settings."""

from collections.abc import Mapping
from typing import Any

from fedpgp.config.registry import Registry
from fedpgp.core import plugins
from fedpgp.server_rules import plugin_check
from fedpgp.server_rules.base import ServerRule
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
