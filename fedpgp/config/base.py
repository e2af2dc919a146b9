"""The bases of settings: frozen models whose docstrings are comments."""

from typing import Any

from pydantic import BaseModel, ConfigDict


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
