"""The registry of methods: creates a method from its name and a mapping of settings."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from fedpgp.config import explain
from fedpgp.core import plugins
from fedpgp.core.errors import ConfigError
from fedpgp.core.plugins import Plugin
from fedpgp.methods import plugin_check
from fedpgp.methods.base import Method
from fedpgp.methods.coop import CoOp
from fedpgp.methods.fedcocoop import FedCoCoOp
from fedpgp.methods.fedlora import FedLoRA
from fedpgp.methods.fedmaple import FedMaPLe
from fedpgp.methods.fedotp import FedOTP
from fedpgp.methods.fedpgp import FedPGP
from fedpgp.methods.pfedpt import PFedPT
from fedpgp.methods.promptfl import PromptFL, PromptProx
from fedpgp.methods.zero_shot import ZeroShot

log = logging.getLogger(__name__)

# A list, so that mypy names each class that does not satisfy the protocol.
_BUILT_IN: list[type[Method]] = [
    ZeroShot, CoOp, PromptFL, PromptProx, FedCoCoOp, FedMaPLe, FedOTP, FedPGP, PFedPT, FedLoRA,
]  # fmt: skip

METHODS: dict[str, type[Method]] = {method.name: method for method in _BUILT_IN}


def defaults(name: str) -> dict[str, Any]:
    """The default settings of a method; empty if it is unknown."""
    fields = METHODS[name].settings_type.model_fields if name in METHODS else {}
    return {key: field.default for key, field in fields.items()}


def find(name: str) -> type[Method]:
    """The class of a method: built in, an entry point, or MODULE:CLASS; raise `ConfigError` if it cannot be used."""
    if name in METHODS:
        return METHODS[name]
    if (found := plugin(name)) is None:
        raise plugins.unknown("method.name", "method", plugins.METHODS, name, METHODS)
    plugin_check.check_class(found)
    return found.kind


def plugin(name: str) -> Plugin | None:
    """The plug-in that a method is; None: it is built in."""
    return None if name in METHODS else plugins.find("method.name", plugins.METHODS, name)


def code_paths(name: str) -> list[str] | None:
    """The file or the folder with the code of a method that no environment has; None: there is none to take along."""
    found = plugin(name)
    return None if found is None or found.code.installed else [str(found.code.path)]


def available() -> Iterator[tuple[str, str, type[Method] | ConfigError]]:
    """Name and origin of each built-in and installed method, with its class or why it cannot be used."""
    for name, kind in METHODS.items():
        yield name, "built in", kind
    for name, package in plugins.installed(plugins.METHODS):
        try:
            if name in METHODS:
                raise ConfigError(f"the name {name} is that of a built-in method")
            yield name, f"package {package}", find(name)
        except ConfigError as error:
            yield name, f"package {package}", error


def create(name: str, settings: Mapping[str, Any], code: str | None = None) -> Method:
    """The method of that name; raise `ConfigError` if it is unknown, or does not know or cannot use a setting.

    `code` is the digest of the code with which parameters were trained; other code gives a warning.
    """
    kind = find(name)
    try:
        checked = kind.settings_type.model_validate(dict(settings))
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, kind.settings_type, f"method {name}"))) from None
    if (found := plugin(name)) is None:
        return kind(checked)
    if code not in (None, found.code.digest):
        log.warning("method %s: its code is not that of the training (digest %s then)", name, code)
    return plugin_check.build(name, kind, checked)
