"""Checks that a class from outside the package keeps the contract of its kind: members, and what its calls return."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from fedpgp.core.errors import ConfigError, UserError
from fedpgp.core.plugins import Plugin, reason
from fedpgp.core.tree import ParamTree

Members = Mapping[str, tuple[Any, str]]
"""The type of each member, and how a message describes it."""

T = TypeVar("T")


def check_class(setting: str, what: str, plugin: Plugin, needed: Iterable[str], members: Members) -> None:
    """Raise `ConfigError` with all that the class of a plug-in lacks or has of another type.

    Args:
        setting: the setting that names it.
        what: its kind, such as `method`.
        needed: members of any type.
        members: members of the class.
    """
    kind = plugin.kind
    lacking = [name for name in needed if getattr(kind, name, None) in (None, object.__init__)]
    lacking += [name for name in members if not hasattr(kind, name)]
    found = [f"missing {', '.join(lacking)}"] if lacking else []
    found += wrong(kind, {name: member for name, member in members.items() if hasattr(kind, name)})
    if found:
        raise ConfigError(f"{setting}: {plugin.target} is not a {what}: {'; '.join(found)}")


def wrong(owner: Any, members: Members) -> list[str]:
    """What is missing or of another type."""
    found = []
    for name, (kind, form) in members.items():
        if not hasattr(owner, name):
            found.append(f"{name} is missing")
            continue
        try:
            TypeAdapter(kind).validate_python(getattr(owner, name), strict=True)
        except ValidationError:
            found.append(f"{name} is {getattr(owner, name)!r}, not {form}")
    return found


def form_of(value: Any) -> str:
    """`shape (2, 3)`, or the type of what is not a tensor."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


class Contract:
    """Calls the code of one plug-in, and raises `ConfigError` for what it does wrong.

    Args:
        subject: for messages, for example `method my_module:MyMethod`.
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject

    def attempt(self, what: str, function: Callable[[], T]) -> T:
        """What a function returns; `what` names it."""
        try:
            return function()
        except UserError:
            raise
        except Exception as error:
            raise ConfigError(f"{self._subject}: {what} raised {reason(error)}") from error

    def refuse(self, found: Iterable[str]) -> None:
        """Raise if there is anything."""
        if lines := list(found):
            raise ConfigError(f"{self._subject}: {'; '.join(lines)}")

    def tree(self, what: str, value: Any) -> ParamTree:
        """The value, if it is a dict of tensors."""
        if not isinstance(value, dict) or not all(isinstance(one, Tensor) for one in value.values()):
            self.refuse([f"{what} is {form_of(value)}, not a dict of tensors"])
        found: ParamTree = value
        return found

    def like(self, what: str, value: Any, expected: ParamTree) -> ParamTree:
        """The value, if it is a dict of finite tensors with these keys, shapes and dtypes."""
        tree = self.tree(what, value)
        if tree.keys() != expected.keys():
            self.refuse([f"{what} has the keys {', '.join(tree) or 'none'}, not {', '.join(expected) or 'none'}"])
        for key, one in tree.items():
            if one.shape != expected[key].shape or one.dtype != expected[key].dtype:
                was, needed = ((tuple(part.shape), part.dtype) for part in (one, expected[key]))
                self.refuse([f"{what}: {key!r} has shape and type {was}, not {needed}"])
            if not one.isfinite().all():
                self.refuse([f"{what}: {key!r} is not finite"])
        return tree
