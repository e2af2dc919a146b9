"""A folder that says how what it holds stands: JSON files, a status, and the lock of whoever is writing."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from fedpgp.core.errors import RunError
from fedpgp.core.files import shared_lock, write_durably


class Status(TypedDict):
    """How a run or a sweep stands."""

    state: str
    reason: str | None
    timestamp_ms: int


class JsonObject(dict[str, Any]):
    """What a JSON file says; to ask for what it does not say is an error that names the file."""

    path: Path

    def __missing__(self, key: str) -> Any:
        raise RunError(
            f"{self.path}: does not say {key!r}, so it is not as fedpgp wrote it; restore its folder or move it away"
        )


ANYTHING, STATUS = TypeAdapter(dict[str, Any]), TypeAdapter(Status)


class StatusFolder:
    """A run or a sweep on disk, in `ROOT/runs` or `ROOT/sweeps`. Its writer holds `.lock`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def root(self) -> Path:
        """The storage root."""
        return self.path.parent.parent

    @property
    def status(self) -> dict[str, Any]:
        """`state` (running | finished | failed | stopped), `reason` (or null) and `timestamp_ms`."""
        return self._read_json("status.json", STATUS)

    @property
    def state(self) -> str:
        """As in `status`, but `interrupted` for what says `running` and has no writer: it was killed."""
        state = str(self.status["state"])
        lock = self.path / ".lock"
        if state != "running" or not lock.exists():
            return state
        try:
            with shared_lock(lock):
                state = str(self.status["state"])  # it may have ended just now
                return "interrupted" if state == "running" else state
        except BlockingIOError:
            return state

    def _set_status(self, state: str, reason: str | None = None) -> None:
        self._write_json("status.json", {"state": state, "reason": reason, "timestamp_ms": now_ms()})

    def _put(self, name: str, content: bytes) -> None:
        """Write a file of the folder."""
        write_durably(self.path / name, content)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self._put(name, (json.dumps(dict(content), indent=2, ensure_ascii=False) + "\n").encode())

    def _read_json(self, name: str, form: TypeAdapter[Any] = ANYTHING) -> JsonObject:
        path = self.path / name
        try:
            text = path.read_text(encoding="utf-8")
            content = json.loads(text)
            form.validate_json(text, strict=True)
        except ValidationError as error:
            (first, *_) = error.errors()
            where = "".join(f"{part}: " for part in first["loc"])
            raise RunError(
                f"{path}: not as fedpgp wrote it: {where}{first['msg']}; restore its folder or move it away"
            ) from None
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise RunError(f"{path}: cannot be read ({error}); restore its folder or move it away") from None
        told = JsonObject(content)
        told.path = path
        return told


def now_ms() -> int:
    """Since 1970."""
    return time.time_ns() // 1_000_000
