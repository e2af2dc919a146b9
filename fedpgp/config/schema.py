"""The settings as a JSON Schema, with which an editor completes, explains and checks a YAML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from fedpgp.config.settings import Experiment, MethodSettings

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(methods: Mapping[str, type[BaseModel]], sources: Sequence[str]) -> dict[str, Any]:
    """Every key of an experiment with its kind, bounds, default and comment.

    Args:
        methods: the settings class of each method by its name; under `method` a file may have the keys of the one that
            it names, and no others. A method MODULE:CLASS may have any.
        sources: the names that `data.name` may have, besides MODULE:CLASS.
    """
    tree = Experiment.model_json_schema()
    tree["$defs"][MethodSettings.__name__] = {
        "title": MethodSettings.__name__,
        "type": "object",
        "anyOf": [
            *(_method(name, settings) for name, settings in methods.items()),
            _plugin(),
        ],
    }
    tree["$defs"]["DataSettings"]["properties"]["name"]["anyOf"] = [{"enum": [*sources]}, {"pattern": ":"}]
    return {"$schema": DIALECT, **tree}


def _plugin() -> dict[str, Any]:
    """A method MODULE:CLASS, whose keys only its code knows."""
    description = MethodSettings.model_fields["name"].description
    name = {"type": "string", "pattern": ":", "description": description}
    return {"title": "MODULE:CLASS", "properties": {"name": name}, "required": ["name"]}


def _method(name: str, settings: type[BaseModel]) -> dict[str, Any]:
    """One method: its name, which only the default one can do without, and its keys."""
    field = MethodSettings.model_fields["name"]
    tree = settings.model_json_schema()
    named = {"const": name, "description": field.description}
    required = {} if name == field.default else {"required": ["name"]}
    return {**tree, "title": name, "properties": {"name": named, **tree["properties"]}, **required}
