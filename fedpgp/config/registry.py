"""Classes with settings, chosen by name: those of the package, entry points, and MODULE:CLASS."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import ValidationError

from fedpgp.config.base import Settings
from fedpgp.config.reading import explain
from fedpgp.core import plugins
from fedpgp.core.errors import ConfigError
from fedpgp.core.plugins import Plugin


class HasSettings(Protocol):
    """A class that is built from its settings."""

    name: ClassVar[str]
    settings_type: ClassVar[type[Settings]]


T = TypeVar("T", bound=HasSettings)


class Registry(Generic[T]):
    """The classes of one kind.

    Args:
        setting: its key, for messages, for example `method.name`.
        what: what it chooses, for messages, for example `method`.
        group: the group of entry points.
        built_in: the classes of the package.
        check: refuses a plug-in that is not of this kind.
    """

    def __init__(
        self, setting: str, what: str, group: str, built_in: Iterable[type[T]], check: Callable[[Plugin], None]
    ) -> None:
        self.built_in: dict[str, type[T]] = {kind.name: kind for kind in built_in}
        self._setting, self._what, self._group, self._check = setting, what, group, check

    def find(self, name: str) -> type[T]:
        """The class of that name; raise `ConfigError` if there is none or it cannot be used."""
        if name in self.built_in:
            return self.built_in[name]
        if (found := self.plugin(name)) is None:
            raise plugins.unknown(self._setting, self._what, self._group, name, self.built_in)
        self._check(found)
        return found.kind

    def plugin(self, name: str) -> Plugin | None:
        """The plug-in of that name; None: it is built in, or unknown."""
        return None if name in self.built_in else plugins.find(self._setting, self._group, name)

    def available(self) -> Iterator[tuple[str, str, type[T] | ConfigError]]:
        """Name and origin of each built-in and installed class, with the class or why it cannot be used."""
        for name, kind in self.built_in.items():
            yield name, "built in", kind
        for name, package in plugins.installed(self._group):
            try:
                if name in self.built_in:
                    raise ConfigError(f"the name {name} is that of a built-in {self._what}")
                yield name, f"package {package}", self.find(name)
            except ConfigError as error:
                yield name, f"package {package}", error

    def settings(self, name: str, given: Mapping[str, Any]) -> tuple[type[T], Settings]:
        """The class of that name and its checked settings; raise `ConfigError` if a setting is unknown or invalid."""
        kind = self.find(name)
        try:
            return kind, kind.settings_type.model_validate(dict(given))
        except ValidationError as error:
            raise ConfigError("\n".join(explain(error, kind.settings_type, f"{self._what} {name}"))) from None
