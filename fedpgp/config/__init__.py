"""Experiments as frozen, validated settings, read from YAML and `a.b=value` overrides, with a digest."""

from fedpgp.config.base import Settings
from fedpgp.config.federation import AttackSettings, FederationSettings, PrivacySettings, ServerSettings
from fedpgp.config.reading import assign, dropped, explain, leaves, load, override, parse, read_yaml, shipped_configs
from fedpgp.config.settings import (
    BackboneSettings,
    DataSettings,
    Experiment,
    MethodSettings,
    PartitionSettings,
    PartSettings,
    ProtocolSettings,
    ResourceSettings,
    StorageSettings,
    TrackingSettings,
)
from fedpgp.config.values import dump_yaml, load_yaml
from fedpgp.config.writing import absolute, annotated, differing, digest, dotted, dump, schema

__all__ = [
    "AttackSettings", "BackboneSettings", "DataSettings", "Experiment", "FederationSettings", "MethodSettings",
    "PartSettings", "PartitionSettings", "PrivacySettings", "ProtocolSettings", "ResourceSettings", "ServerSettings",
    "Settings", "StorageSettings", "TrackingSettings", "absolute", "annotated", "assign", "differing", "digest",
    "dotted", "dropped", "dump", "dump_yaml", "explain", "leaves", "load", "load_yaml", "override", "parse",
    "read_yaml", "schema", "shipped_configs",
]  # fmt: skip
