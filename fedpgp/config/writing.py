"""Writes experiments as YAML and their settings as JSON Schema, and computes their digest."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fedpgp.config import tracking_uri
from fedpgp.config.base import Named, Settings
from fedpgp.config.federation import PrivacySettings, ServerSettings
from fedpgp.config.reading import leaves
from fedpgp.config.settings import DataSettings, Experiment, MethodSettings
from fedpgp.config.values import dump_yaml
from fedpgp.core.plugins import code_keys

NEUTRAL = {
    "partition": {"unseen_clients"},
    "data": {"parts"},
    "protocol": {"train_classes", "source"},
    "federation": {
        "lr_schedule", "lr_schedule_per", "lr_warmup_rounds", "lr_step_rounds", "lr_step_factor", "sampling", "server",
        "attack", "dropout", "dropout_keeps_personal", "straggler", "new_client_epochs", "local_steps",
        "keep_momentum", "eval_clients",
    },
    "privacy": set(PrivacySettings.model_fields),
}  # fmt: skip
"""Settings that are younger than the first runs and whose defaults change nothing: a digest leaves these defaults out,
so that it is that of the earlier runs."""
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def dump(settings: Settings) -> str:
    """Write an experiment or a sweep as YAML from which `load` reads the same settings."""
    return dump_yaml(settings.model_dump(mode="json"))


def annotated(experiment: Experiment, chosen: Mapping[str, type[BaseModel]]) -> str:
    """Write the experiment as YAML with a comment for every key.

    Args:
        chosen: the settings class of what a section names, by section: `method`, `federation.server`.
    """
    lines: list[str] = []
    for name, field in Experiment.model_fields.items():
        value = getattr(experiment, name)
        if not isinstance(value, BaseModel):
            lines.append(_commented(name, value, field.description, indent=0))
            continue
        lines += ["", f"# {type(value).__doc__ or name}", f"{name}:", *_section(name, value, chosen, indent=2)]
    return "\n".join(lines) + "\n"


def _section(path: str, section: BaseModel, chosen: Mapping[str, type[BaseModel]], indent: int) -> list[str]:
    fields = {**type(section).model_fields, **(chosen[path].model_fields if path in chosen else {})}
    tree = section.model_dump(mode="json")
    lines = []
    for key in (key for key in fields if key in tree):
        value, comment = getattr(section, key), fields[key].description
        if isinstance(value, BaseModel):
            lines.append(_comment(f"{' ' * indent}{key}:", comment))
            lines += _section(f"{path}.{key}", value, chosen, indent + 2)
        else:
            lines.append(_commented(key, tree[key], comment, indent))
    return lines


def schema(
    methods: Mapping[str, type[BaseModel]], rules: Mapping[str, type[BaseModel]], sources: Sequence[str]
) -> dict[str, Any]:
    """Describe every key of an experiment as JSON Schema, for an editor: type, bounds, default and comment.

    Args:
        methods: the settings class of each method by its name, which defines the keys allowed under `method`. A method
            MODULE:CLASS may have any keys.
        rules: the same for the server rules, under `federation.server`.
        sources: the values of `data.name` besides MODULE:CLASS.
    """
    tree = Experiment.model_json_schema()
    for section, kinds in ((MethodSettings, methods), (ServerSettings, rules)):
        tree["$defs"][section.__name__] = _variants(section, kinds)
    for data in ("DataSettings", "PartSettings"):
        tree["$defs"][data]["properties"]["name"]["anyOf"] = [{"enum": [*sources]}, {"pattern": ":"}]
    return {"$schema": DIALECT, **tree}


def _variants(section: type[Named], kinds: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """A section whose keys are those of what its name chooses."""
    field = section.model_fields["name"]
    variants: list[dict[str, Any]] = []
    for name, settings in kinds.items():
        keys = settings.model_json_schema()
        named = {"const": name, "description": field.description}
        required = {} if name == field.default else {"required": ["name"]}
        variants.append({**keys, "title": name, "properties": {"name": named, **keys["properties"]}, **required})
    plugin = {"type": "string", "pattern": ":", "description": field.description}
    variants.append({"title": "MODULE:CLASS", "properties": {"name": plugin}, "required": ["name"]})
    return {"title": section.__name__, "type": "object", "anyOf": variants}


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
    weights = backbone.weights
    if weights is not None and Path(weights).expanduser().is_file():
        weights = str(Path(weights).expanduser().absolute())
    return experiment.model_copy(
        update={
            "data": _absolute(data),
            "backbone": backbone.model_copy(update={"weights": weights}),
            "storage": storage.model_copy(update={"root": storage.root.expanduser().absolute()}),
            "tracking": tracking_uri.resolved(experiment.tracking),
        }
    )


def _absolute(data: DataSettings) -> DataSettings:
    root = data.root.expanduser().absolute() if isinstance(data.root, Path) else data.root
    parts = None if data.parts is None else tuple(_absolute(part) for part in data.parts)
    return data.model_copy(update={"root": root, "parts": parts})


def _numbers(experiment: Experiment) -> dict[str, Any]:
    """Return the settings that can change a result."""
    tree = experiment.model_dump(mode="json", exclude={"resources", "tracking", "storage", "name"})
    for one in (tree["data"], *(tree["data"]["parts"] or ())):
        one.pop("root")
    for key in ("class_chunk", "weights_key"):  # the fingerprint identifies the weights
        tree["backbone"].pop(key)
    return tree


def _commented(key: str, value: Any, comment: str | None, indent: int) -> str:
    text = dump_yaml([value], default_flow_style=True, width=1000).strip()
    return _comment(f"{' ' * indent}{key}: {text[1:-1]}", comment)


def _comment(text: str, comment: str | None) -> str:
    return f"{text:<34}  # {' '.join((comment or '').split())}"
