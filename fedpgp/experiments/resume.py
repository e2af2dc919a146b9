"""`--resume` with edited settings: refused, with the run that was begun and what differs, instead of a new run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import yaml

from fedpgp import config
from fedpgp.config import Experiment, differing
from fedpgp.core.errors import ConfigError, FedPGPError
from fedpgp.data import sources
from fedpgp.experiments.planning import Plan
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.run_index import RunIndex


def refuse_edited(plan: Plan) -> None:
    """Where there is no run of exactly these settings, none of others may be waiting to be gone on with.

    Raises:
        ConfigError: on this machine an unfinished run of this name, seed and held-out domain has other settings.
    """
    experiment = plan.experiment
    now = config.dotted(experiment, manifest=plan.manifest.digest, weights=plan.weights, plugins=plan.plugins)
    for store, then in sorted(_unfinished(experiment), key=lambda found: -found[0].identity["created_ms"]):
        if all(then[key] == now[key] for key in ("seed", "protocol.held_out")):
            raise ConfigError(_told(store, differing([then, now]), then, now))


def _unfinished(experiment: Experiment) -> Iterator[tuple[RunFolder, Mapping[str, Any]]]:
    """Runs of the name that nobody is working on, with their settings; without those that this version cannot read."""
    for path in RunIndex(experiment.storage.root).named(experiment.name):
        with suppress(FedPGPError, yaml.YAMLError):
            store = RunFolder.open(path)
            if store.state in ("interrupted", "stopped", "failed"):
                settings = sources.complete(config.parse(yaml.safe_load(store.config_yaml)))
                manifest, weights = (store.identity.get(key) for key in ("manifest_digest", "weights_fingerprint"))
                yield (
                    store,
                    config.dotted(settings, manifest=manifest, weights=weights, plugins=store.identity.get("plugins")),
                )


def _told(store: RunFolder, keys: Sequence[str], then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What was edited, a line each."""
    begun = f"--resume: no run has exactly these settings; {store.path} ({store.state}) was begun with others:"
    edited = [f"  {key}: {then.get(key)} then, {now.get(key)} now" for key in keys]
    return "\n".join([begun, *edited, "go on with those, or leave --resume out to start a new run with these"])
