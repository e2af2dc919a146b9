"""Refuse `--resume` if the settings were edited since the run of this name was started."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    """Check for unfinished runs with other settings. Call it if no run has exactly the settings of the plan.

    Raises:
        ConfigError: an unfinished run on this machine has the same name, seed and held-out domain, but other settings.
    """
    experiment = plan.experiment
    now = config.dotted(experiment, manifest=plan.manifest.digest, weights=plan.weights, plugins=plan.plugins)
    for store, then in sorted(_unfinished(experiment), key=lambda found: -found[0].identity["created_ms"]):
        if all(then[key] == now[key] for key in ("seed", "protocol.held_out")):
            edited = [f"  {key}: was {then.get(key)}, is {now.get(key)}" for key in differing([then, now])]
            raise ConfigError(
                f"--resume: no run has exactly these settings; {store.path} ({store.state}) has others:\n"
                + "\n".join(edited)
                + "\nrestore its settings to continue it, or start a new run without --resume"
            )


def _unfinished(experiment: Experiment) -> Iterator[tuple[RunFolder, Mapping[str, Any]]]:
    """Runs of this name without a writer, with their settings; skips those that this version cannot read."""
    for path in RunIndex(experiment.storage.root).named(experiment.name):
        with suppress(FedPGPError, yaml.YAMLError):
            store = RunFolder.open(path)
            if store.state in ("interrupted", "stopped", "failed"):
                settings = sources.complete(config.parse(yaml.safe_load(store.config_yaml)))
                manifest, weights = (store.identity.get(key) for key in ("manifest_digest", "weights_fingerprint"))
                plugins = store.identity.get("plugins")
                yield store, config.dotted(settings, manifest=manifest, weights=weights, plugins=plugins)
