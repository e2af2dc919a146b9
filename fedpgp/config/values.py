"""Reads and writes YAML, with the numbers of YAML 1.2; reads values of the command line, where text stands as it is."""

import json
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from fedpgp.core.errors import ConfigError


class Loader(yaml.SafeLoader):
    """YAML's safe loader. `1e-4` is a number, as `1.0e-4` is; duplicate keys are refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping; raise `YAMLError` if a key occurs twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        duplicates = sorted({str(key) for key in keys if keys.count(key) > 1})
        if duplicates:
            raise yaml.YAMLError(f"duplicate key {', '.join(duplicates)} near line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """YAML's safe dumper, which puts quotes around text that `Loader` would read as a number."""


for _yaml in (Loader, Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def dump_yaml(tree: Any, **options: Any) -> str:
    """Write plain values as YAML from which `Loader` reads the same values; `options` as in `yaml.dump`."""
    text: str = yaml.dump(tree, Dumper=Dumper, allow_unicode=True, **{"sort_keys": False, **options})
    return text


def load_yaml(text: str) -> Any:
    """Read plain values from YAML."""
    return yaml.load(text, Loader)  # a safe one


def read_value(item: str, key: str, text: str, model: type[BaseModel]) -> Any:
    """Read the value of an override by the type of its setting.

    A setting of text or of a path takes the text as it stands (`null` or nothing: None); quotes around it are removed,
    and `{grid_search: [...]}` is a mapping. A list or mapping of names consists of text. Everything else is YAML.

    Args:
        item: the override, for messages.
        key: dotted key.
        model: settings that have the key.

    Raises:
        ConfigError: not YAML, or something behind a # would be lost.
    """
    if text in ("", "null"):
        return None
    kinds = kinds_of(model, key.split("."))
    plain, names = kinds == {"text"}, "texts" in kinds and kinds <= {"text", "texts"}
    if plain and not text.startswith(("{", '"', "'")):
        return text
    loader = yaml.BaseLoader if plain or names else Loader  # both are safe ones
    try:
        value = yaml.load(text, loader)
    except yaml.YAMLError:
        if plain:
            return text
        raise ConfigError(f"override {item!r}: the value is not readable as YAML") from None
    if plain and not isinstance(value, Mapping if text[0] == "{" else str):
        return text
    if "#" in text and not _keeps_number_signs(text, value, loader):
        raise ConfigError(
            f"override {item!r}: what follows # would be lost, a comment in YAML; put quotes around the value, inside "
            "those of the shell"
        )
    return value


def _keeps_number_signs(text: str, value: Any, loader: Any) -> bool:
    """Whether every # of `text` is in the `value` that was read from it."""
    other = "\N{FULLWIDTH NUMBER SIGN}"
    try:
        found = yaml.load(text.replace("#", other), loader)
    except yaml.YAMLError:
        return False
    shown = (json.dumps(one, default=str, ensure_ascii=False) for one in (value, found))
    return next(shown).replace("#", other) == next(shown)


def kinds_of(model: type[BaseModel], keys: Sequence[str | int]) -> set[str]:
    """What the values of a setting may be, without None: text, texts (several) or other; empty if it is unknown."""
    annotation: Any = model
    for part in keys:
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return set()
        field = annotation.model_fields.get(str(part))
        if field is None:
            return set()
        annotation = field.annotation
    return {_kind(one) for one in _members(annotation)} - {"none"}


def _members(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for one in get_args(annotation) for member in _members(one)]
    return _members(get_args(annotation)[0]) if get_origin(annotation) is Annotated else [annotation]


def _kind(annotation: Any) -> str:
    if annotation is type(None):
        return "none"
    if annotation in (str, Path) or get_origin(annotation) is Literal:
        return "text"
    return "texts" if annotation in (tuple[str, ...], dict[str, str]) else "other"
