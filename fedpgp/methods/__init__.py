"""The registry of methods: creates a method from its name and a mapping of settings."""

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from fedpgp.config import Settings
from fedpgp.config.registry import Registry
from fedpgp.core import plugins
from fedpgp.core.errors import ConfigError
from fedpgp.core.text import first_of
from fedpgp.methods import plugin_check
from fedpgp.methods.base import Method
from fedpgp.methods.coop import CoOp
from fedpgp.methods.dp_fpl import DPFPL
from fedpgp.methods.fedcocoop import FedCoCoOp
from fedpgp.methods.fedlora import FedLoRA
from fedpgp.methods.fedmaple import FedMaPLe
from fedpgp.methods.fedmgp import FedMGP
from fedpgp.methods.fedotp import FedOTP
from fedpgp.methods.fedpgp import FedPGP
from fedpgp.methods.fedpha import FedPHA
from fedpgp.methods.fedtpg import FedTPG
from fedpgp.methods.kgcoop import KgCoOp
from fedpgp.methods.pfedmoap import PFedMoAP
from fedpgp.methods.pfedpt import PFedPT
from fedpgp.methods.prograd import ProGrad
from fedpgp.methods.promptfl import PromptFL, PromptProx
from fedpgp.methods.promptfolio import PromptFolio
from fedpgp.methods.zero_shot import ZeroShot

log = logging.getLogger(__name__)

# A list, so that mypy names each class that does not satisfy the protocol.
_BUILT_IN: list[type[Method]] = [
    ZeroShot, CoOp, PromptFL, PromptProx, FedCoCoOp, FedMaPLe, FedOTP, FedPGP, PFedPT, FedLoRA,
    KgCoOp, ProGrad, FedTPG, PromptFolio, PFedMoAP, DPFPL, FedPHA, FedMGP,
]  # fmt: skip

REGISTRY: Registry[Method] = Registry("method.name", "method", plugins.METHODS, _BUILT_IN, plugin_check.check_class)
METHODS = REGISTRY.built_in
find, plugin, available = REGISTRY.find, REGISTRY.plugin, REGISTRY.available


def carry(old: str, new: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Of the settings given for one method, return those that hold for another one, and a text on the others.

    A default of the old method gives way to that of the new one. If there is no method `new`, all settings are kept.
    """
    try:
        kind = find(new).settings_type
    except ConfigError:  # reported where the method is created
        return dict(given), ""
    before, after = _defaults(old), _defaults(new)
    kept, unknown, replaced = {}, [], []
    for key, value in given.items():
        was_default = key in before and value == before[key]
        if key in after and (not was_default or value == after[key]) and _accepts(kind, key, value):
            kept[key] = value
        elif key in after and was_default:
            replaced.append(f"{key}={_shown(value)} (its default is {_shown(after[key])})")
        elif key != "name" and not was_default:
            unknown.append(f"{key}={_shown(value)}")
    unknown = [f"{first_of(unknown, 5)} (which it does not take)"] if unknown else []
    return kept, ", ".join([*unknown, *replaced])


def _defaults(name: str) -> dict[str, Any]:
    """The default settings of a method as YAML has them; empty if it cannot be used."""
    try:
        fields = find(name).settings_type.model_fields
    except ConfigError:
        return {}
    values = {key: field.get_default(call_default_factory=True) for key, field in fields.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _accepts(kind: type[Settings], key: str, value: Any) -> bool:
    """Whether a value of one setting is valid, whatever the others are."""
    try:
        kind.model_validate({key: value})
    except ValidationError as error:
        return all(item["loc"][:1] != (key,) for item in error.errors())
    return True


def code_paths(name: str) -> list[str] | None:
    """The file or the folder with the code of a method that no environment has; None: there is none to take along."""
    found = plugin(name)
    return None if found is None or found.code.installed else [str(found.code.path)]


def create(name: str, settings: Mapping[str, Any], code: str | None = None) -> Method:
    """The method of that name; raise `ConfigError` if it is unknown, or does not know or cannot use a setting.

    `code` is the digest of the code with which parameters were trained; other code gives a warning.
    """
    kind, checked = REGISTRY.settings(name, settings)
    if (found := plugin(name)) is None:
        return kind(checked)
    if code not in (None, found.code.digest):
        log.warning("method %s: its code is not that of the training (digest %s then)", name, code)
    return plugin_check.build(name, kind, checked)
