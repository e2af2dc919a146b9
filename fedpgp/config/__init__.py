"""Experiments as frozen, validated settings, read from YAML and `a.b=value` overrides, with a digest."""

from fedpgp.config.overrides import assign, override, read_override, warn_dropped
from fedpgp.config.reading import explain, load, parse, read_yaml, shipped_configs
from fedpgp.config.schema import schema
from fedpgp.config.settings import (
    BackboneSettings,
    DataSettings,
    Experiment,
    FederationSettings,
    MethodSettings,
    PartitionSettings,
    ProtocolSettings,
    ResourceSettings,
    Settings,
    StorageSettings,
    TrackingSettings,
)
from fedpgp.config.writing import absolute, annotated, differing, digest, dotted, dump

__all__ = [
    "BackboneSettings", "DataSettings", "Experiment", "FederationSettings", "MethodSettings", "PartitionSettings",
    "ProtocolSettings", "ResourceSettings", "Settings", "StorageSettings", "TrackingSettings", "absolute",
    "annotated", "assign", "differing", "digest", "dotted", "dump", "explain", "load", "override", "parse",
    "read_override", "read_yaml", "schema", "shipped_configs", "warn_dropped",
]  # fmt: skip
