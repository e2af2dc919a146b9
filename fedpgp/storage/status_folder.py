"""Base class of run and sweep folders: JSON files, a status, the lock of the writing process, and the remote copy."""

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Required, Self, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from fedpgp.core import provenance
from fedpgp.core.errors import RunError
from fedpgp.core.files import (
    TEMPORARY,
    access_errors,
    check_readable,
    locked,
    make_folder,
    shared_lock,
    sync_folder,
    write_durably,
)
from fedpgp.storage.claims import Claim, claimed, owner_of
from fedpgp.storage.object_store import LAST as STATUS_FILE
from fedpgp.storage.object_store import ObjectStore

T = TypeVar("T")


class Status(TypedDict):
    """Content of `status.json`."""

    state: str
    reason: str | None
    timestamp_ms: int


class Identity(TypedDict, total=False):
    """Content of `identity.json`: what ran. Keys may be missing, and others present, in runs of other versions."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    id: str  # unique
    name: str
    config_digest: str
    created_ms: int  # since 1970
    method: str
    data: str
    backbone: str | None  # None: the method brings its own network
    seed: int
    client_names: list[str]
    class_names: list[str]
    num_examples: list[int]  # training images of each client
    manifest_digest: str
    content_digest: str  # of the images (`data.content.digest`); missing if none of them is a file
    partition_digest: str
    weights_fingerprint: str
    plugins: dict[str, dict[str, str]]  # `name` and `digest` of the code of method, federation.server and data
    versions: dict[str, str]
    hardware: dict[str, Any]
    git_commit: str
    code_digest: str  # of the Python files of the package


class Stretch(TypedDict, total=False):
    """Consecutive rounds of a run that were made by the same versions on the same hardware."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    first_round: Required[int]
    versions: dict[str, str]
    hardware: dict[str, Any]
    git_commit: str
    code_digest: str


def stretch(first_round: int, identity: Mapping[str, Any]) -> Stretch:
    """The versions and hardware of an identity, or of what `provenance.describe` returned."""
    made_with = {key: identity[key] for key in provenance.KEYS if key in identity}
    return cast(Stretch, {"first_round": first_round, **made_with})


class JsonObject(dict[str, Any]):
    """Content of a JSON file; reading a missing key raises an error that names the file."""

    path: Path

    def __missing__(self, key: str) -> Any:
        raise _damaged(self.path, f"missing key {key!r}")


class _StretchesFile(TypedDict):
    stretches: list[Stretch]


ANYTHING, IDENTITY, STATUS = TypeAdapter(dict[str, Any]), TypeAdapter(Identity), TypeAdapter(Status)
STRETCHES = TypeAdapter(_StretchesFile)


LOCK = ".lock"
"""The file that the writer of a folder holds; if nobody holds it and the status is `running`, the writer was killed."""


class StatusFolder:
    """A run or a sweep on disk, in `ROOT/runs` or `ROOT/sweeps`. Its writer holds `.lock`.

    With a remote folder, every file is written there first: this folder is a copy that is never ahead of it, and its
    writer also holds a claim there (`claims`).
    """

    kind: ClassVar[str]  # run | sweep
    marker: ClassVar[str]  # the file that identifies a folder of this kind

    def __init__(self, path: Path, remote: ObjectStore | None = None) -> None:
        self.path = path
        self._remote = remote
        self._claim: Claim | None = None

    @classmethod
    def open(cls, path: Path, uri: str | None = None) -> Self:
        """Open an existing folder; raise `RunError` if `path` is not a folder of this kind or may not be read.

        What is written to it also goes to the storage root at `uri`.
        """
        check_readable(path / cls.marker)
        if not (path / cls.marker).is_file():
            where = f"ROOT/{cls.kind}s/NAME-DIGEST"
            raise RunError(f"{path}: not a {cls.kind} folder (no {cls.marker}); give a folder {where}")
        return cls(path.absolute(), remote_of(path, uri))

    @property
    def root(self) -> Path:
        """The storage root."""
        return self.path.parent.parent

    @property
    def status(self) -> dict[str, Any]:
        """`state` (running | finished | failed | stopped), `reason` (or null) and `timestamp_ms`."""
        return self._read_json(STATUS_FILE, STATUS)

    @property
    def state(self) -> str:
        """As in `status`, but `interrupted` if the status is `running` and no process holds the lock: it was killed."""
        state = str(self.status["state"])
        lock = self.path / LOCK
        if state != "running" or not lock.exists():
            return state
        try:
            with shared_lock(lock):
                state = str(self.status["state"])  # it may have ended just now
                return "interrupted" if state == "running" else state
        except BlockingIOError:
            return state

    @contextmanager
    def _exclusive(self, on_busy: Callable[[str], None]) -> Iterator[None]:
        """Hold the lock, remove the temporary files of a killed writer, and set the status to `running`.

        `on_busy` is called with the pid of another process that holds the lock, before waiting for it. Raises
        `RunError` if a process with another storage root writes to the remote copy.
        """
        path = self.path / LOCK
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(path, wait=False))
            except BlockingIOError:
                on_busy(path.read_text())
                stack.enter_context(locked(path))
            if self._remote:
                self._claim = stack.enter_context(claimed(self._remote, owner_of(self.root), f"this {self.kind}"))
                stack.callback(setattr, self, "_claim", None)
                self._refresh(self._remote)
            for leftover in list(self.path.rglob(f"{TEMPORARY}*")):
                self._remove(leftover)
            self.set_status("running")
            yield

    def set_status(self, state: str, reason: str | None = None) -> None:
        """Set `running`, or how it ended."""
        self._write_json(STATUS_FILE, {"state": state, "reason": reason, "timestamp_ms": now_ms()})

    def _refresh(self, remote: ObjectStore) -> None:
        """Fetch what another machine wrote since this folder was opened; every writer sets the status."""
        if remote.read(STATUS_FILE) != (self.path / STATUS_FILE).read_bytes():
            remote.fetch(self.path)

    def _put(self, name: str, content: bytes) -> None:
        """Write a file of the folder, first to its remote copy."""
        self._send(name, content)
        write_durably(self.path / name, content)

    def _send(self, name: str, content: bytes) -> None:
        """Write a file of the remote copy, if there is one; raise `StorageError` if that is not possible now."""
        if self._claim:
            self._claim.check()
        if self._remote:
            self._remote.put(name, content)

    def _send_file(self, name: str) -> None:
        """Copy a file of the folder to the remote copy, if there is one."""
        if self._remote:
            self._send(name, (self.path / name).read_bytes())

    def _remove(self, path: Path) -> None:
        """Delete a file or a folder below, or a file in the remote copy, too."""
        with access_errors(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if self._remote:
            self._remote.delete(self._name(path))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self._put(name, (json.dumps(dict(content), indent=2, ensure_ascii=False) + "\n").encode())

    def _read_text(self, name: str) -> str:
        with access_errors(self.path / name):
            return (self.path / name).read_text(encoding="utf-8")

    def _read_json(self, name: str, form: TypeAdapter[Any] = ANYTHING) -> JsonObject:
        content = JsonObject(self._parse(name, form))
        content.path = self.path / name
        return content

    def _parse(self, name: str, form: TypeAdapter[T]) -> T:
        """Read and validate a JSON file."""
        path = self.path / name
        try:
            with access_errors(path):
                content = path.read_bytes()
            return form.validate_json(content, strict=True)
        except ValidationError as error:
            (first, *_) = error.errors()
            where = "".join(f"{part}: " for part in first["loc"])
            raise _damaged(path, f"{where}{first['msg']}") from None
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror})") from None


def new_draft(parent: Path) -> Path:
    """Create a folder beside the others to write into before it has a name; its mode follows the umask."""
    folder = parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    make_folder(folder)
    return folder


def remote_of(path: Path, uri: str | None) -> ObjectStore | None:
    """The remote copy of `ROOT/runs/NAME-DIGEST` or `ROOT/sweeps/NAME-DIGEST` in the storage root at `uri`."""
    return ObjectStore.at(uri) / path.parent.name / path.name if uri else None


def fetch(path: Path, remote: ObjectStore) -> None:
    """Replace a run or sweep folder by its remote copy in one atomic step, unless a process writes to it."""
    draft = new_draft(path.parent)
    try:
        remote.fetch(draft)
        (draft / LOCK).touch()  # so that it counts as interrupted; a claim tells whether another machine writes to it
        if path.exists():
            with locked(path / LOCK, wait=False):
                shutil.rmtree(path)
        draft.rename(path)
        sync_folder(path.parent)
    except BlockingIOError:  # the lock refuses other writers later
        shutil.rmtree(draft)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _damaged(path: Path, problem: str) -> RunError:
    return RunError(f"{path}: damaged or not written by fedpgp: {problem}; restore the folder or move it away")
