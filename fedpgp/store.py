"""The folder of one run: the only code that knows its layout."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from fedpgp.errors import FedPGPError, RunError
from fedpgp.evaluation import selection_score
from fedpgp.federation import checkpoint
from fedpgp.federation.checkpoint import State
from fedpgp.files import TEMPORARY, locked, sync_folder, write_durably
from fedpgp.records import CLIENT_SCHEMA, CONFUSION_SCHEMA, RoundRow

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2


class RunStore:
    """One run on disk, `ROOT/runs/NAME-DIGEST`; a second run of the same digest gets `.2`, and so on.

    * `config.yaml`, `identity.json`, `status.json`, `partition.csv` (images by client, split, class and domain)
    * `rounds/000001.arrow`: one immutable object per round with the clients' rows, the round's row and the reference
      to its checkpoint. A round exists once this file does.
    * `checkpoints/000001.safetensors`: of the last two rounds and of the best one by validation
    * `confusion.arrow`: what was taken for what, after the last round
    * `rounds.jsonl`, `clients.arrow`, `summary.json`: once finished
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._rounds = path / "rounds"
        self._references: dict[int, tuple[float | None, dict[str, Any]]] | None = None

    @classmethod
    def create(cls, root: Path, name: str, digest: str, config_yaml: str, identity: Mapping[str, Any]) -> RunStore:
        """A new run under `root`; the folder appears whole, beside earlier runs of the same digest.

        Args:
            digest: of the configuration, see `config.digest`.
            identity: what ran, as plain JSON: `method`, `data`, `client_names`, `manifest_digest`, `partition_digest`,
                `weights_fingerprint`, and whatever else is worth knowing.
        """
        runs = root.absolute() / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        draft = cls(Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=runs)))
        draft.path.chmod(0o755)
        draft.checkpoints.mkdir()
        draft._rounds.mkdir()
        write_durably(draft.path / "config.yaml", config_yaml.encode())
        draft._write_json(
            "identity.json",
            {"id": uuid.uuid4().hex, "name": name, "config_digest": digest, "created_ms": _now_ms(), **identity},
        )
        draft._set_status("running")
        number = max(_existing(runs, name, digest), default=0) + 1
        while True:
            path = runs / _folder_name(name, digest, number)
            try:
                draft.path.rename(path)
            except OSError:
                if not path.exists():
                    shutil.rmtree(draft.path)
                    raise
                number += 1
            else:
                sync_folder(runs)
                return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunStore:
        """An existing run.

        Raises:
            RunError: `path` is not the folder of a run.
        """
        if not (path / "identity.json").is_file():
            raise RunError(f"{path}: not the folder of a run (no identity.json); runs lie in ROOT/runs/NAME-DIGEST")
        return cls(path.absolute())

    @classmethod
    def find(cls, path: Path) -> list[RunStore]:
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
    def find_resumable(cls, root: Path, name: str, digest: str) -> RunStore | None:
        """The newest run of this name and digest, if there is one."""
        runs = root / "runs"
        number = max(_existing(runs, name, digest), default=None)
        return None if number is None else cls.open(runs / _folder_name(name, digest, number))

    @property
    def root(self) -> Path:
        """The storage root."""
        return self.path.parent.parent

    @property
    def config_yaml(self) -> str:
        """The configuration, as `config.parse` reads it."""
        return (self.path / "config.yaml").read_text(encoding="utf-8")

    @property
    def identity(self) -> dict[str, Any]:
        """What was given to `create`, with `id` (unique), `name`, `config_digest` and `created_ms`."""
        return self._read_json("identity.json")

    @property
    def status(self) -> dict[str, Any]:
        """`state` (running | finished | failed | stopped), `reason` (or null) and `timestamp_ms`."""
        return self._read_json("status.json")

    @property
    def state(self) -> str:
        """As in `status`, but `interrupted` for a run that says `running` and has no writer: it was killed."""
        state = str(self.status["state"])
        lock = self.path / ".lock"
        if state != "running" or not lock.exists():
            return state
        try:
            with locked(lock, wait=False):
                return "interrupted"
        except BlockingIOError:
            return state

    @property
    def summary(self) -> dict[str, Any] | None:
        """What was given to `finish`, with `run` and `status`; None before."""
        return self._read_json("summary.json") if (self.path / "summary.json").exists() else None

    @property
    def partition(self) -> pa.Table | None:
        """What was given to `save_partition`; None before."""
        path = self.path / "partition.csv"
        try:
            return pyarrow.csv.read_csv(path)
        except FileNotFoundError:
            return None
        except (OSError, pa.ArrowInvalid) as error:
            raise RunError(f"{path}: cannot be read ({error})") from None

    def save_partition(self, table: pa.Table) -> None:
        """Write who holds what, as CSV: `data.summary.partition_table`."""
        content = pa.BufferOutputStream()
        pyarrow.csv.write_csv(table, content)
        write_durably(self.path / "partition.csv", bytes(content.getvalue()))

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
                leftover.unlink()
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
        metadata = {"round": json.dumps(dataclasses.asdict(row)), "checkpoint": json.dumps(dict(reference))}
        write_durably(path, _arrow_bytes(clients.cast(CLIENT_SCHEMA).replace_schema_metadata(metadata)))
        self._known()[row.round] = (selection_score(row.metrics), dict(reference))
        self._prune()

    def rounds(self, after: int = -1) -> list[RoundRow]:
        """The committed rounds above `after`, in order."""
        return [RoundRow(**_metadata(path, "round")) for path in self._round_paths() if int(path.stem) > after]

    def clients(self) -> pa.Table:
        """All rounds' client rows, in order, in `records.CLIENT_SCHEMA`."""
        tables = [_read(path).read_all().replace_schema_metadata() for path in self._round_paths()]
        return pa.concat_tables(tables) if tables else CLIENT_SCHEMA.empty_table()

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
            if not _is_whole(path):
                break
            good.append(path)
        found = None
        while good and found is None:
            try:
                reference = _metadata(good[-1], "checkpoint")
                found = checkpoint.load(self.checkpoints, reference, config_digest), reference
            except RunError as error:
                log.warning("%s", error)
                good.pop()
        for path in self._round_paths()[len(good) :]:
            log.warning("round %d is dropped and will be run again", int(path.stem))
            path.unlink()
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
        write_durably(self.path / "confusion.arrow", _arrow_bytes(table.cast(CONFUSION_SCHEMA)))

    @property
    def confusion(self) -> pa.Table | None:
        """What was given to `save_confusion`; None before."""
        path = self.path / "confusion.arrow"
        return _read(path).read_all() if path.exists() else None

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the rounds and the clients' rows as one file each, and the summary; the run is finished."""
        lines = [json.dumps(dataclasses.asdict(row)) + "\n" for row in self.rounds()]
        write_durably(self.path / "rounds.jsonl", "".join(lines).encode())
        write_durably(self.path / "clients.arrow", _arrow_bytes(self.clients().combine_chunks()))
        self._write_json("summary.json", {"run": self.path.name, "status": "finished", **summary})
        self._set_status("finished")

    def fail(self, reason: str) -> None:
        """The run ended by an error."""
        self._set_status("failed", reason)

    def stop(self, reason: str) -> None:
        """The run was ended from outside: by a signal, or early by a scheduler."""
        self._set_status("stopped", reason)

    def _set_status(self, state: str, reason: str | None = None) -> None:
        self._write_json("status.json", {"state": state, "reason": reason, "timestamp_ms": _now_ms()})

    def _prune(self) -> None:
        """Keep the checkpoints of the last rounds and of the best one."""
        references = self._known()
        newest = sorted(references)[-KEPT_CHECKPOINTS:]
        kept = [references[number][1] for number in {*newest, *([self.best] if self.best else [])}]
        checkpoint.prune(self.checkpoints, set().union(*map(checkpoint.files_of, kept)))

    def _known(self) -> dict[int, tuple[float | None, dict[str, Any]]]:
        """Validation score and checkpoint reference of every round; read once, then kept up with."""
        if self._references is None:
            self._references = {}
            for path in self._round_paths():
                score = selection_score(_metadata(path, "round")["metrics"])
                self._references[int(path.stem)] = (score, _metadata(path, "checkpoint"))
        return self._references

    def _round_path(self, number: int) -> Path:
        return self._rounds / f"{number:06d}.arrow"

    def _round_paths(self) -> list[Path]:
        return sorted(self._rounds.glob("[0-9]*.arrow"))

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_durably(self.path / name, (json.dumps(dict(content), indent=2, ensure_ascii=False) + "\n").encode())

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: cannot be read ({error})") from None
        return content


def _folder_name(name: str, digest: str, number: int) -> str:
    return f"{name}-{digest}" + (f".{number}" if number > 1 else "")


def _existing(runs: Path, name: str, digest: str) -> list[int]:
    pattern = re.compile(re.escape(f"{name}-{digest}") + r"(?:\.(\d+))?")
    names = os.listdir(runs) if runs.is_dir() else []
    return [int(match[1] or 1) for match in map(pattern.fullmatch, names) if match]


def _arrow_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _read(path: Path) -> pa.RecordBatchFileReader:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (pa.ArrowInvalid, OSError) as error:
        raise RunError(f"{path}: round cannot be read ({error}); resuming the run repairs it") from None


def _is_whole(path: Path) -> bool:
    try:
        _read(path).read_all()
    except (RunError, pa.ArrowInvalid, OSError) as error:
        log.warning("%s", error)
        return False
    return True


def _metadata(path: Path, key: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_read(path).schema.metadata[key.encode()])
    return content


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
