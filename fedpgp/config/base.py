"""The bases of settings: frozen models whose docstrings are comments, and a number of bytes."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ByteSize, ConfigDict, WrapValidator


def _size(given: Any, parse: Callable[[Any], ByteSize]) -> ByteSize:
    try:
        return parse(given)
    except ValueError:
        raise ValueError("give a number of bytes, or one with a unit such as 8GB or 500MiB") from None


Size = Annotated[ByteSize, WrapValidator(_size)]
"""Bytes: a number, or one with a unit of powers of 1000 (kB, MB, GB) or of 1024 (KiB, MiB, GiB)."""


class Settings(BaseModel):
    """Base of all settings: frozen, without extra keys; the docstring of a field is its comment."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Named(BaseModel):
    """A name, and the keys of what it chooses."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    @property
    def settings(self) -> dict[str, Any]:
        """The keys besides the name."""
        return dict(self.model_extra or {})
