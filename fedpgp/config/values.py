"""Reads and writes YAML with the values of YAML 1.2, and reads the command line, where text stands as it is."""

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
    """YAML's safe loader with the values of YAML 1.2: 010 is ten, 1e-4 a number; yes, 1:30 and dates are text.

    `1_000` is a number, as in Python. Duplicate keys are refused.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping; raise `YAMLError` if a key occurs twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        duplicates = sorted({str(key) for key in keys if keys.count(key) > 1})
        if duplicates:
            raise yaml.YAMLError(f"duplicate key {', '.join(duplicates)} near line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Read a whole number; without 0x, 0o or 0b it is decimal."""
        text = str(self.construct_scalar(node))
        return int(text, 0 if text.lstrip("+-")[:2].lower() in ("0x", "0o", "0b") else 10)


Loader.yaml_implicit_resolvers = {}  # instead of those of YAML 1.1
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)


class Dumper(yaml.SafeDumper):
    """YAML's safe dumper. It quotes text that YAML 1.1 or `Loader` would read as something else."""


NUMBER = r"(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+)", list("-+0123456789")),
    "float": (rf"[-+]?(?:{NUMBER}|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)", list("-+.0123456789")),
    "merge": (r"<<", ["<"]),
}
"""Pattern and possible first characters of text without quotes that is no text, by its type."""
for _type, (_pattern, _first) in PLAIN.items():
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_type}", re.compile(f"(?:{_pattern})$"), _first)


def dump_yaml(tree: Any, **options: Any) -> str:
    """Write plain values as YAML from which YAML 1.1 and `Loader` read the same; `options` as in `yaml.dump`."""
    text: str = yaml.dump(tree, Dumper=Dumper, allow_unicode=True, **{"sort_keys": False, **options})
    return text


def load_yaml(text: str) -> Any:
    """Read plain values from YAML."""
    return yaml.load(text, Loader)  # a safe one


def read_value(item: str, key: str, text: str, model: type[BaseModel]) -> Any:
    """Read the value of an override by the type of its setting.

    A setting of text or of a path takes the text as it stands (`null` or nothing: None); quotes around it are removed,
    and `{grid_search: [...]}`, also with `when`, is a mapping. A list or mapping of names consists of text. Everything
    else is YAML.

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
    except (yaml.YAMLError, ValueError, RecursionError):  # a ValueError is of an explicit type, such as !!int x
        if plain:
            return text
        raise ConfigError(f"override {item!r}: the value is not readable as YAML") from None
    if plain and not (_is_search(value) if text[0] == "{" else isinstance(value, str)):
        return text
    if isinstance(value, dict) and isinstance(value.get("when"), Mapping):  # its values are of other settings
        value["when"] = load_yaml(text)["when"]
    if "#" in text and not _keeps_number_signs(text, value, loader):
        raise ConfigError(
            f"override {item!r}: what follows # would be lost, a comment in YAML; put quotes around the value, inside "
            "those of the shell"
        )
    return value


def _is_search(value: Any) -> bool:
    """Whether a value looks like `{grid_search: [...]}`, unlike a template such as `{}`; it may have a condition."""
    lists = [one for key, one in value.items() if key != "when"] if isinstance(value, Mapping) else []
    return [type(one) for one in lists] == [list]


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
