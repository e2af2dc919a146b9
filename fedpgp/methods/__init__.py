"""The registry of methods: creates a method from its name and a mapping of settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from fedpgp.config import explain
from fedpgp.core.errors import ConfigError
from fedpgp.core.text import did_you_mean
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

# A list, so that mypy names each class that does not satisfy the protocol.
_BUILT_IN: list[type[Method]] = [
    ZeroShot, CoOp, PromptFL, PromptProx, FedCoCoOp, FedMaPLe, FedOTP, FedPGP, PFedPT, FedLoRA,
]  # fmt: skip

METHODS: dict[str, type[Method]] = {method.name: method for method in _BUILT_IN}


def defaults(name: str) -> dict[str, Any]:
    """The default settings of a method; empty if it is unknown."""
    fields = METHODS[name].settings_type.model_fields if name in METHODS else {}
    return {key: field.default for key, field in fields.items()}


def create(name: str, settings: Mapping[str, Any]) -> Method:
    """Create the method of that name.

    Raises:
        ConfigError: unknown method, or an unknown or invalid setting.
    """
    if name not in METHODS:
        hint = did_you_mean(name, METHODS, "see `fedpgp methods`")
        raise ConfigError(f"method.name: unknown method {name!r}; {hint} (known: {', '.join(METHODS)})")
    kind = METHODS[name]
    try:
        checked = kind.settings_type.model_validate(dict(settings))
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, kind.settings_type, f"method {name}"))) from None
    return kind(checked)
