"""The folder of one run: the only code that knows its layout."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from pydantic import TypeAdapter

from fedpgp.core.errors import FedPGPError, RunError
from fedpgp.core.files import TEMPORARY, locked, sync_folder
from fedpgp.federation.metrics import selection_score
from fedpgp.federation.records import CLIENT_SCHEMA, CONFUSION_SCHEMA, PARTITION_SCHEMA, RoundRow
from fedpgp.federation.state import State
from fedpgp.storage import checkpoint, round_files
from fedpgp.storage.identity import Identity
from fedpgp.storage.object_store import ObjectStore
from fedpgp.storage.run_index import RunIndex
from fedpgp.storage.status_folder import StatusFolder, now_ms

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
IDENTITY = TypeAdapter(Identity)
PARTITION = pyarrow.csv.ConvertOptions(
    include_columns=PARTITION_SCHEMA.names, column_types=PARTITION_SCHEMA, strings_can_be_null=False
)


class RunFolder(StatusFolder):
    """One run on disk, `ROOT/runs/NAME-DIGEST`; a second run of the same digest gets `.2`, and so on.

    * `config.yaml`, `identity.json`, `status.json`, `partition.csv` (images by client, split, class and domain)
    * `rounds/000001.arrow`: one immutable object per round with the clients' rows, the round's row and the reference
      to its checkpoint. A round exists once this file does.
    * `checkpoints/000001.safetensors`: of the last two rounds and of the best one by validation
    * `confusion.arrow`: what was taken for what, after the last round
    * `rounds.jsonl`, `clients.arrow`, `summary.json`: once finished; `traceback.txt`: once failed

    With a URI it is kept there besides, file by file, and this folder is a copy that is never ahead of it.
    """

    def __init__(self, path: Path, remote: ObjectStore | None = None) -> None:
        super().__init__(path)
        self._remote = remote
        self.checkpoints = path / "checkpoints"
        self._rounds = path / "rounds"
        self._references: dict[int, tuple[float | None, dict[str, Any]]] | None = None

    @classmethod
    def create(
        cls,
        root: Path,
        name: str,
        digest: str,
        config_yaml: str,
        identity: Mapping[str, Any],
        uri: str | None = None,
    ) -> RunFolder:
        """A new run under `root`; the folder appears whole, beside earlier runs of the same digest.

        Args:
            digest: of the configuration, see `config.digest`.
            identity: what ran, as plain JSON: `method`, `data`, `client_names`, `manifest_digest`, `partition_digest`,
                `weights_fingerprint`, and whatever else is worth knowing.
            uri: where it is kept besides, see `config.StorageSettings`.
        """
        runs = RunIndex(root, uri)
        draft = cls(runs.draft())
        draft.checkpoints.mkdir()
        draft._rounds.mkdir()
        draft._put("config.yaml", config_yaml.encode())
        draft._write_json(
            "identity.json",
            {"id": uuid.uuid4().hex, "name": name, "config_digest": digest, "created_ms": now_ms(), **identity},
        )
        draft._set_status("running")
        path = runs.place(draft.path, name, digest)
        store = cls(path, runs.remote(path))
        store._publish("config.yaml", "status.json", "identity.json")
        return store

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run.

        Raises:
            RunError: `path` is not the folder of a run.
        """
        if not (path / "identity.json").is_file():
            raise RunError(f"{path}: not the folder of a run (no identity.json); runs lie in ROOT/runs/NAME-DIGEST")
        return cls(path.absolute())

    @classmethod
    def find(cls, path: Path) -> list[RunFolder]:
        """The run in this folder, or all runs below this storage root or its `runs`, by name.

        Raises:
            RunError: there is none.
        """
        folders = [path] if (path / "identity.json").is_file() else []
        folders += [found.parent for pattern in ("*", "runs/*") for found in path.glob(f"{pattern}/identity.json")]
        if not folders:
            raise RunError(f"{path}: no run here (no identity.json); give a run's folder or a storage root")
        return [cls(folder.absolute()) for folder in sorted(folders) if not folder.name.startswith(TEMPORARY)]

    @classmethod
    def find_resumable(cls, root: Path, name: str, digest: str, uri: str | None = None) -> RunFolder | None:
        """The newest run of this name and digest, if there is one; fetched from `uri` if it is kept there."""
        runs = RunIndex(root, uri)
        path = runs.newest(name, digest)
        return None if path is None else cls._at_hand(runs, path)

    @classmethod
    def with_digest(cls, root: Path, digest: str, uri: str | None = None) -> list[RunFolder]:
        """All runs of a digest, whatever their names, the newest first; fetched from `uri` if they are kept there."""
        runs = RunIndex(root, uri)
        found = [store for path in runs.with_digest(digest) if (store := cls._at_hand(runs, path)) is not None]
        return sorted(found, key=lambda store: int(store.identity["created_ms"]), reverse=True)

    @classmethod
    def _at_hand(cls, runs: RunIndex, path: Path) -> RunFolder | None:
        """A run of `runs`, fetched if need be."""
        if not path.exists() or cls(path).status["state"] != "finished":
            runs.fetch(path)
        store = cls(path, runs.remote(path))
        if store._remote and not (path / "identity.json").exists():
            return None  # a kill came before the run was told of there
        for folder in (store.checkpoints, store._rounds):  # an empty folder is nothing on an object store
            folder.mkdir(exist_ok=True)
        return store

    @property
    def config_path(self) -> Path:
        """The file with the configuration, as `config.load` reads it."""
        return self.path / "config.yaml"

    @property
    def config_yaml(self) -> str:
        """The configuration, as `config.parse` reads it."""
        return self.config_path.read_text(encoding="utf-8")

    @property
    def identity(self) -> dict[str, Any]:
        """What was given to `create`, with `id` (unique), `name`, `config_digest` and `created_ms`."""
        return self._read_json("identity.json", IDENTITY)

    @property
    def summary(self) -> dict[str, Any] | None:
        """What was given to `finish`, with `run` and `status`; None before."""
        return self._read_json("summary.json") if (self.path / "summary.json").exists() else None

    @property
    def partition(self) -> pa.Table | None:
        """What was given to `save_partition`; None before."""
        path = self.path / "partition.csv"
        try:
            return pyarrow.csv.read_csv(path, convert_options=PARTITION)
        except FileNotFoundError:
            return None
        except (OSError, KeyError, pa.ArrowInvalid) as error:
            raise RunError(f"{path}: cannot be read ({error})") from None

    def save_partition(self, table: pa.Table) -> None:
        """Write who holds what, as CSV: `data.summary.partition_table`."""
        content = pa.BufferOutputStream()
        pyarrow.csv.write_csv(table, content)
        self._put("partition.csv", bytes(content.getvalue()))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only writer of this run; what a killed writer left half-done is removed, the status is `running`.

        Raises:
            RunError: another process is the writer.
        """
        path = self.path / ".lock"
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(path, wait=False))
            except BlockingIOError:
                raise RunError(f"{self.path}: in use by pid {path.read_text()}; wait for it or stop it") from None
            for leftover in self.path.rglob(f"{TEMPORARY}*"):
                self._remove(leftover)
            if (trace := self.path / "traceback.txt").exists():
                self._remove(trace)
            self._set_status("running")
            yield

    def commit(self, row: RoundRow, clients: pa.Table, reference: Mapping[str, Any]) -> None:
        """Make a round part of the run, durably; checkpoints but those of the last two and the best are removed.

        Args:
            clients: the round's rows, in `records.CLIENT_SCHEMA`.
            reference: what `checkpoint.save` returned for `self.checkpoints`.
        """
        path = self._round_path(row.round)
        if path.exists():
            raise FedPGPError(f"{path}: round {row.round} is committed already")
        if self._remote and reference["files"]:
            newest = self.checkpoints / reference["files"][-1]["file"]
            self._remote.put(self._name(newest), newest.read_bytes())
        self._put(self._name(path), round_files.encode(row, clients, reference))
        self._known()[row.round] = (selection_score(row.metrics), dict(reference))
        self._prune()

    def rounds(self, after: int = -1) -> list[RoundRow]:
        """The committed rounds above `after`, in order."""
        return [round_files.row(path) for path in self._round_paths() if int(path.stem) > after]

    def clients(self) -> pa.Table:
        """All rounds' client rows, in order, in `records.CLIENT_SCHEMA`."""
        tables = [round_files.table(path) for path in self._round_paths()]
        found = pa.concat_tables(tables) if tables else CLIENT_SCHEMA.empty_table()
        named = self.identity.get("client_names")
        if named is not None and found.num_rows and pc.max(found["client"]).as_py() >= len(named):
            raise RunError(f"{self.path}: has rows of more clients than the {len(named)} that identity.json names")
        return found

    def last_good(self, config_digest: str) -> tuple[State, dict[str, Any]] | None:
        """The newest state that can be read, with its reference; None: begin anew.

        Rounds beyond it are removed, with a warning: they will be run again. Call it under `lock`.

        Raises:
            RunError: the run belongs to another configuration.
        """
        if config_digest != (own := self.identity["config_digest"]):
            raise RunError(f"{self.path}: is a run of configuration {own}, not of {config_digest}; start a new one")
        good: list[Path] = []
        for path in self._round_paths():  # a round counts only if all before it are whole
            if not round_files.is_whole(path):
                break
            good.append(path)
        found = None
        while good and found is None:
            try:
                reference = round_files.reference(good[-1])
                found = checkpoint.load(self.checkpoints, reference, config_digest), reference
            except RunError as error:
                log.warning("%s", error)
                good.pop()
        for path in self._round_paths()[len(good) :]:
            log.warning("round %d is dropped and will be run again", int(path.stem))
            self._remove(path)
        self._references = None
        sync_folder(self._rounds)
        self._prune()
        return found

    @property
    def best(self) -> int | None:
        """The round with the best `evaluation.selection_score`, the first of equals; None: no score."""
        scores = {number: score for number, (score, _) in self._known().items() if score is not None}
        return max(scores, key=lambda number: (scores[number], -number), default=None)

    def state_at(self, number: int) -> State:
        """The state after a round whose checkpoint is kept: one of the last two, or `best`.

        Raises:
            RunError: it is not kept, or cannot be read.
        """
        if number not in self._known():
            raise RunError(f"{self.path}: has no round {number}")
        return checkpoint.load(self.checkpoints, self._known()[number][1], self.identity["config_digest"])

    def save_confusion(self, table: pa.Table) -> None:
        """Write what was taken for what after the last round, in `records.CONFUSION_SCHEMA`."""
        self._put("confusion.arrow", round_files.arrow_bytes(table.cast(CONFUSION_SCHEMA)))

    @property
    def confusion(self) -> pa.Table | None:
        """What was given to `save_confusion`; None before."""
        path = self.path / "confusion.arrow"
        return round_files.table(path) if path.exists() else None

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the rounds and the clients' rows as one file each, and the summary; the run is finished."""
        lines = [json.dumps(dataclasses.asdict(row)) + "\n" for row in self.rounds()]
        self._put("rounds.jsonl", "".join(lines).encode())
        self._put("clients.arrow", round_files.arrow_bytes(self.clients().combine_chunks()))
        self._write_json("summary.json", {"run": self.path.name, "status": "finished", **summary})
        self._set_status("finished")

    def fail(self, reason: str, traceback: str | None = None) -> None:
        """The run ended by an error; where in the code goes to `traceback.txt`."""
        if traceback is not None:
            self._put("traceback.txt", traceback.encode())
        self._set_status("failed", reason)

    def stop(self, reason: str) -> None:
        """The run was ended from outside: by a signal, or early by a scheduler."""
        self._set_status("stopped", reason)

    def _prune(self) -> None:
        """Keep the checkpoints of the last rounds and of the best one."""
        references = self._known()
        newest = sorted(references)[-KEPT_CHECKPOINTS:]
        kept = [references[number][1] for number in {*newest, *([self.best] if self.best else [])}]
        for path in checkpoint.superfluous(self.checkpoints, set().union(*map(checkpoint.files_of, kept))):
            self._remove(path)

    def _known(self) -> dict[int, tuple[float | None, dict[str, Any]]]:
        """Validation score and checkpoint reference of every round; read once, then kept up with."""
        if self._references is None:
            self._references = {}
            for path in self._round_paths():
                self._references[int(path.stem)] = (
                    selection_score(round_files.row(path).metrics),
                    round_files.reference(path),
                )
        return self._references

    def _round_path(self, number: int) -> Path:
        return self._rounds / f"{number:06d}.arrow"

    def _round_paths(self) -> list[Path]:
        return sorted(self._rounds.glob("[0-9]*.arrow"))

    def _publish(self, *names: str) -> None:
        """Send these files of a new run, in this order, to where it is kept besides; without them there is no run."""
        try:
            for name in names if self._remote else ():
                self._put(name, (self.path / name).read_bytes())
        except FedPGPError:
            shutil.rmtree(self.path)
            raise

    def _put(self, name: str, content: bytes) -> None:
        """Write a file of the run: first where it is kept besides, so that this folder is never ahead."""
        if self._remote:
            self._remote.put(name, content)
        super()._put(name, content)

    def _remove(self, path: Path) -> None:
        path.unlink()
        if self._remote:
            self._remote.delete(self._name(path))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()
