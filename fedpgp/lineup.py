"""Several variants of one experiment, told apart by a label: what `fedpgp demo` compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedpgp import config
from fedpgp.config import Experiment
from fedpgp.errors import ConfigError


def load(path: Path, overrides: Sequence[str]) -> dict[str, dict[int, Experiment]]:
    """Experiments by label and seed, from a file with `base` (a shipped experiment), `folds.seeds` and `variants`.

    Each variant maps dotted keys to values; overrides apply to all.

    Raises:
        ConfigError: the file is not such a file, or a variant cannot be used.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        base, seeds, variants = tree["base"], tree["folds"]["seeds"], tree["variants"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: needs base, folds.seeds and variants ({error})") from None
    own = [item for item in overrides if not item.startswith("folds.seeds=")]
    for item in overrides:
        if item.startswith("folds.seeds="):
            seeds = yaml.safe_load(item.removeprefix("folds.seeds="))
    return {label: {seed: _variant(base, changes, seed, own) for seed in seeds} for label, changes in variants.items()}


def _variant(base: str, changes: Mapping[str, Any], seed: int, overrides: Sequence[str]) -> Experiment:
    flow = [f"{key}={yaml.safe_dump([value], default_flow_style=True).strip()[1:-1]}" for key, value in changes.items()]
    return config.parse(config.override(config.read_yaml(base), [*flow, f"seed={seed}", *overrides]), source=base)
