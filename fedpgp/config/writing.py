"""Writes experiments as YAML and their settings as JSON Schema, and computes their digest."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fedpgp.config import tracking_uri
from fedpgp.config.reading import leaves
from fedpgp.config.settings import Experiment, MethodSettings, PrivacySettings, Settings
from fedpgp.config.values import dump_yaml
from fedpgp.core.plugins import code_keys

NEUTRAL = {
    "partition": {"unseen_clients"},
    "federation": {
        "lr_schedule", "lr_schedule_per", "lr_warmup_rounds", "lr_step_rounds", "lr_step_factor", "sampling", "server",
        "attack", "dropout", "dropout_keeps_personal", "straggler", "new_client_epochs",
    },
    "privacy": set(PrivacySettings.model_fields),
}  # fmt: skip
"""Settings that are younger than the first runs and whose defaults change nothing: a digest leaves these defaults out,
so that it is that of the earlier runs."""
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def dump(settings: Settings) -> str:
    """Write an experiment or a sweep as YAML from which `load` reads the same settings."""
    return dump_yaml(settings.model_dump(mode="json"))


def annotated(experiment: Experiment, method: type[BaseModel]) -> str:
    """Write the experiment as YAML with a comment for every key; `method` is the settings class of its method."""
    lines: list[str] = []
    for name, field in Experiment.model_fields.items():
        value = getattr(experiment, name)
        if not isinstance(value, BaseModel):
            lines.append(_commented(name, value, field.description, indent=0))
            continue
        lines += ["", f"# {type(value).__doc__ or name}", f"{name}:"]
        fields = {**type(value).model_fields, **(method.model_fields if name == "method" else {})}
        tree = value.model_dump(mode="json")
        lines += [_commented(key, tree[key], fields[key].description, indent=2) for key in fields if key in tree]
    return "\n".join(lines) + "\n"


def schema(methods: Mapping[str, type[BaseModel]], sources: Sequence[str]) -> dict[str, Any]:
    """Describe every key of an experiment as JSON Schema, for an editor: type, bounds, default and comment.

    Args:
        methods: the settings class of each method by its name, which defines the keys allowed under `method`. A method
            MODULE:CLASS may have any keys.
        sources: the values of `data.name` besides MODULE:CLASS.
    """
    field = MethodSettings.model_fields["name"]
    variants: list[dict[str, Any]] = []
    for name, settings in methods.items():
        keys = settings.model_json_schema()
        named = {"const": name, "description": field.description}
        required = {} if name == field.default else {"required": ["name"]}
        variants.append({**keys, "title": name, "properties": {"name": named, **keys["properties"]}, **required})
    plugin = {"type": "string", "pattern": ":", "description": field.description}
    variants.append({"title": "MODULE:CLASS", "properties": {"name": plugin}, "required": ["name"]})
    tree = Experiment.model_json_schema()
    tree["$defs"][MethodSettings.__name__] = {"title": MethodSettings.__name__, "type": "object", "anyOf": variants}
    tree["$defs"]["DataSettings"]["properties"]["name"]["anyOf"] = [{"enum": [*sources]}, {"pattern": ":"}]
    return {"$schema": DIALECT, **tree}


def digest(experiment: Experiment, **identities: str) -> str:
    """Compute twelve hex digits over exactly the settings that can change a result.

    Paths, resources, tracking, storage and the name are excluded; the content behind the paths is given as
    `identities` (for example `manifest=`, `weights=` digests).
    """
    tree = _numbers(experiment)
    if "weights" in identities:
        tree["backbone"].pop("weights")
    defaults = _numbers(Experiment())
    for section, keys in NEUTRAL.items():
        own = defaults[section]
        tree[section] = {key: one for key, one in tree[section].items() if key not in keys or one != own[key]}
    tree = {section: value for section, value in tree.items() if value != {}}
    text = json.dumps({"settings": tree, "identities": identities}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def dotted(
    experiment: Experiment,
    *,
    manifest: str | None,
    weights: str | None,
    plugins: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """Return the settings of `digest` by dotted keys, for comparing experiments.

    `data.digest` and `backbone.fingerprint` identify the content behind paths, `method.code` and `data.code` the code
    of plug-ins.
    """
    tree = _numbers(experiment)
    tree["backbone"].pop("weights")
    tree["data"]["digest"], tree["backbone"]["fingerprint"] = manifest, weights
    seed = {"seed": tree.pop("seed")}
    tree["federation"] = leaves(tree["federation"])  # it has sections of its own
    found = {f"{section}.{key}": value for section, values in tree.items() for key, value in values.items()}
    return seed | found | code_keys(plugins or {})


def differing(trees: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the dotted keys whose values differ between `trees`; a missing key differs from every value."""
    keys = dict.fromkeys(key for tree in trees for key in tree)
    return [key for key in keys if len({json.dumps(tree.get(key, "(absent)")) for tree in trees}) > 1]


def absolute(experiment: Experiment) -> Experiment:
    """Make every path absolute, and fill in MLflow's environment variables, for processes with other ones."""
    data, backbone, storage = experiment.data, experiment.backbone, experiment.storage
    root = data.root.expanduser().absolute() if isinstance(data.root, Path) else data.root
    weights = backbone.weights
    if weights is not None and Path(weights).expanduser().is_file():
        weights = str(Path(weights).expanduser().absolute())
    return experiment.model_copy(
        update={
            "data": data.model_copy(update={"root": root}),
            "backbone": backbone.model_copy(update={"weights": weights}),
            "storage": storage.model_copy(update={"root": storage.root.expanduser().absolute()}),
            "tracking": tracking_uri.resolved(experiment.tracking),
        }
    )


def _numbers(experiment: Experiment) -> dict[str, Any]:
    """Return the settings that can change a result."""
    tree = experiment.model_dump(mode="json", exclude={"resources", "tracking", "storage", "name"})
    tree["data"].pop("root")
    for key in ("class_chunk", "weights_key"):  # the fingerprint identifies the weights
        tree["backbone"].pop(key)
    return tree


def _commented(key: str, value: Any, comment: str | None, indent: int) -> str:
    text = f"{key}: " + dump_yaml([value], default_flow_style=True, width=1000).strip()[1:-1]
    return f"{' ' * indent}{text:<{34 - indent}}  # {' '.join((comment or '').split())}"
