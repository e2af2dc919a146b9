"""The settings as a JSON Schema, for completion and checks in an editor."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from fedpgp.config.settings import Experiment, MethodSettings

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(methods: Mapping[str, type[BaseModel]], sources: Sequence[str]) -> dict[str, Any]:
    """Describe every key of an experiment as JSON Schema: type, bounds, default and comment.

    Args:
        methods: the settings class of each method by its name, which defines the keys allowed under `method`. A method
            MODULE:CLASS may have any keys.
        sources: the values of `data.name` besides MODULE:CLASS.
    """
    tree = Experiment.model_json_schema()
    tree["$defs"][MethodSettings.__name__] = {
        "title": MethodSettings.__name__,
        "type": "object",
        "anyOf": [*(_method(name, settings) for name, settings in methods.items()), _plugin()],
    }
    tree["$defs"]["DataSettings"]["properties"]["name"]["anyOf"] = [{"enum": [*sources]}, {"pattern": ":"}]
    return {"$schema": DIALECT, **tree}


def _plugin() -> dict[str, Any]:
    """Describe a method MODULE:CLASS, whose keys are unknown."""
    description = MethodSettings.model_fields["name"].description
    name = {"type": "string", "pattern": ":", "description": description}
    return {"title": "MODULE:CLASS", "properties": {"name": name}, "required": ["name"]}


def _method(name: str, settings: type[BaseModel]) -> dict[str, Any]:
    """Describe a method: its name, which is optional for the default one, and its keys."""
    field = MethodSettings.model_fields["name"]
    tree = settings.model_json_schema()
    named = {"const": name, "description": field.description}
    required = {} if name == field.default else {"required": ["name"]}
    return {**tree, "title": name, "properties": {"name": named, **tree["properties"]}, **required}
