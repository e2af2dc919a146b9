"""The folder of one run. No other module knows its layout."""

import dataclasses
import json
import logging
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from fedpgp.core import provenance
from fedpgp.core.errors import AccessError, FedPGPError, RunError
from fedpgp.core.files import TEMPORARY, access_errors, check_readable, folders_with, make_folder, sync_folder
from fedpgp.federation.client_rows import PersonalOf
from fedpgp.federation.measures import POOLED_SCHEMA
from fedpgp.federation.metrics import CLIENT_SCHEMA, CONFUSION_SCHEMA, PARTITION_SCHEMA, RoundRow, selection_score
from fedpgp.federation.state import State
from fedpgp.storage import checkpoint, round_files
from fedpgp.storage.object_store import ObjectStore
from fedpgp.storage.run_index import RunIndex, digest_of, number_of
from fedpgp.storage.status_folder import (
    IDENTITY,
    STRETCHES,
    StatusFolder,
    Stretch,
    fetch,
    new_draft,
    now_ms,
    stretch,
)

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
PARTITION = pyarrow.csv.ConvertOptions(
    include_columns=PARTITION_SCHEMA.names, column_types=PARTITION_SCHEMA, strings_can_be_null=False
)


class RunFolder(StatusFolder):
    """One run on disk, `ROOT/runs/NAME-DIGEST`; further runs of the same digest end in `.2`, `.3`, ...

    * `config.yaml`, `identity.json`, `status.json`, `partition.csv` (images by client, split, class and domain)
    * `rounds/000001.arrow`: one immutable object per round with the clients' rows, the round's row and the reference
      to its checkpoint. A round is committed once this file exists.
    * `pooled/000001.arrow`: counts of a round over all clients, by bin of confidence and by class; written before it
    * `checkpoints/000001.safetensors`: of the last two rounds and of the best one by validation
    * `confusion.arrow`: confusion matrix after the last round
    * `stretches.json`: which rounds were made with which versions and hardware, if not all with those of the beginning
    * `rounds.jsonl`, `clients.arrow`, `summary.json`: once finished; `traceback.txt`: once failed

    """

    kind, marker = "run", "identity.json"

    def __init__(self, path: Path, remote: ObjectStore | None = None) -> None:
        super().__init__(path, remote)
        self.checkpoints = path / "checkpoints"
        self._rounds = path / "rounds"

    @classmethod
    def create(
        cls, root: Path, name: str, digest: str, config_yaml: str, identity: Mapping[str, Any], uri: str | None = None
    ) -> Self:
        """Create a run under `root` in one atomic step, beside earlier runs of the same digest.

        `digest` is that of the configuration (`config.digest`), `identity` has further keys of `Identity` or other JSON
        values, and `uri` is an object store for a second copy (`config.StorageSettings`).
        """
        runs = RunIndex(root, uri)
        draft = cls(new_draft(runs.path))
        draft.checkpoints.mkdir()
        draft._rounds.mkdir()
        draft._put("config.yaml", config_yaml.encode())
        draft._write_json(
            "identity.json",
            {"id": uuid.uuid4().hex, "name": name, "config_digest": digest, "created_ms": now_ms(), **identity},
        )
        draft.set_status("running")
        path = runs.place(draft.path, name, digest)
        store = cls(path, runs.remote(path))
        try:
            for file in ("config.yaml", "status.json", "identity.json"):
                store._send(file, (path / file).read_bytes())
        except FedPGPError:
            shutil.rmtree(path)
            raise
        return store

    @classmethod
    def find(cls, path: Path) -> list[Self]:
        """List the run in this folder, or all below this storage root or its `runs`, by name; `RunError` if none.

        Runs that this user may not read are listed, too.
        """
        check_readable(path)
        folders = [path] if (path / cls.marker).is_file() else []
        folders += [found for parent in (path, path / "runs") for found in folders_with(cls.marker, parent)]
        if not folders:
            raise RunError(f"{path}: no run found (no {cls.marker}); give a run folder or a storage root")
        return [cls(folder.absolute()) for folder in sorted(folders) if not folder.name.startswith(TEMPORARY)]

    @classmethod
    def find_resumable(
        cls, root: Path, name: str, digest: str, uri: str | None = None, content: str | None = None
    ) -> Self | None:
        """Return the newest run of this name and digest `has_images` of, or None; fetched from `uri` if given."""
        runs = RunIndex(root, uri)
        found = (cls._fetched(runs, path) for path in sorted(runs.find(name, digest), key=number_of, reverse=True))
        return next((store for store in found if store is not None and store.has_images(content)), None)

    @classmethod
    def by_digest(cls, root: Path, digests: Iterable[str], uri: str | None = None) -> dict[str, list[Self]]:
        """List all runs of each digest under any name, newest first; fetched from `uri` if given."""
        runs, found = RunIndex(root, uri), {digest: list[Self]() for digest in digests}
        for path in runs.find():
            if (own := found.get(digest_of(path))) is not None and (store := cls._fetched(runs, path)) is not None:
                own.append(store)
        for own in found.values():
            own.sort(key=lambda store: int(store.identity["created_ms"]), reverse=True)
        return found

    @classmethod
    def _fetched(cls, runs: RunIndex, path: Path) -> Self | None:
        """Open a run of `runs` after fetching it, unless the local copy has finished."""
        store = cls(path, runs.remote(path))
        if store._remote and (not path.exists() or store.status["state"] != "finished"):
            fetch(path, store._remote)
        if store._remote and not (path / "identity.json").exists():
            return None  # killed before the run was published
        for folder in (store.checkpoints, store._rounds):  # object stores have no empty folders
            with access_errors(folder):
                folder.mkdir(exist_ok=True)
        return store

    @property
    def config_path(self) -> Path:
        """Path of the configuration, for `config.load`."""
        return self.path / "config.yaml"

    @property
    def config_yaml(self) -> str:
        """The configuration as YAML, for `config.parse`."""
        return self._read_text("config.yaml")

    @property
    def identity(self) -> dict[str, Any]:
        """See `Identity`."""
        return self._read_json("identity.json", IDENTITY)

    @property
    def stretches(self) -> list[Stretch]:
        """The versions and hardware that made the rounds, from the first on; each stretch ends before the next one."""
        if (self.path / "stretches.json").exists():
            return self._parse("stretches.json", STRETCHES)["stretches"]
        return [stretch(1, self.identity)]

    def continue_with(self, first_round: int, described: Mapping[str, Any]) -> dict[str, list[str]]:
        """Record that the rounds from `first_round` on are made with what `provenance.describe` returned.

        Return what differs from the rounds before, as `provenance.differing` does; empty if there are none.
        """
        before = self.stretches
        kept = [one for one in before if one["first_round"] < first_round]
        changed = provenance.differing([kept[-1], described]) if kept else {}
        if changed or not kept:
            kept.append(stretch(first_round, described))
        if kept != before:
            self._write_json("stretches.json", {"stretches": kept})
        return changed

    def has_images(self, content: str | None) -> bool:
        """Whether it may have been made with the images of a content digest: it recorded the same one, or none."""
        return content is None or self.identity.get("content_digest", content) == content

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary given to `finish`, with `run` and `status`; None before."""
        return self._read_json("summary.json") if (self.path / "summary.json").exists() else None

    @property
    def partition(self) -> pa.Table | None:
        """The table given to `save_partition`; None before."""
        path = self.path / "partition.csv"
        check_readable(path)
        try:
            return pyarrow.csv.read_csv(path, convert_options=PARTITION)
        except FileNotFoundError:
            return None
        except (OSError, KeyError, pa.ArrowInvalid) as error:
            raise RunError(f"{path}: cannot be read ({error})") from None

    def save_partition(self, table: pa.Table) -> None:
        """Write the partition as CSV, see `data.summary.partition_table`."""
        content = pa.BufferOutputStream()
        pyarrow.csv.write_csv(table, content)
        self._put("partition.csv", bytes(content.getvalue()))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Become the only writer, clean up after a killed one, and set `running`; raise `RunError` if it is in use."""

        def refuse(pid: str) -> None:
            raise RunError(f"{self.path}: in use by pid {pid}; wait for it or stop it")

        with self._exclusive(refuse):
            if (trace := self.path / "traceback.txt").exists():
                self._remove(trace)
            yield

    def commit(
        self, row: RoundRow, clients: pa.Table, reference: Mapping[str, Any], pooled: pa.Table | None = None
    ) -> None:
        """Commit a round durably, then delete all checkpoints but those of the last two rounds and the best one.

        The clients' rows are in `metrics.CLIENT_SCHEMA`, the pooled ones in `measures.POOLED_SCHEMA` (none: no file);
        the reference is that of `checkpoint.save`.
        """
        path = self._rounds / f"{row.round:06d}.arrow"
        if path.exists():
            raise FedPGPError(f"{path}: round {row.round} is already committed")
        for file in checkpoint.written_in(row.round, reference):
            self._send_file(self._name(self.checkpoints / file))
        if pooled is not None and pooled.num_rows:
            make_folder(self.path / "pooled")  # which runs of older versions lack
            self._put(f"pooled/{path.name}", round_files.arrow_bytes(pooled.cast(POOLED_SCHEMA)))
        self._put(self._name(path), round_files.encode(row, clients, reference))
        self._known[row.round] = (selection_score(row.metrics), dict(reference))
        self._prune()

    def rounds(self, after: int = -1) -> list[RoundRow]:
        """Read the committed rounds above `after`, in order."""
        return [round_files.row(path) for path in self._round_paths() if int(path.stem) > after]

    def clients(self) -> pa.Table:
        """Read the client rows of all rounds, in order, in `metrics.CLIENT_SCHEMA`."""
        tables = [round_files.table(path) for path in self._round_paths()]
        found = pa.concat_tables(tables) if tables else CLIENT_SCHEMA.empty_table()
        named = self.identity.get("client_names")
        if named is not None and found.num_rows and pc.max(found["client"]).as_py() >= len(named):
            raise RunError(f"{self.path}: has rows of more clients than the {len(named)} named in {self.marker}")
        return found

    def pooled(self, after: int = -1) -> pa.Table:
        """Read the pooled counts of the rounds above `after`, in `measures.POOLED_SCHEMA`; older runs have none."""
        paths = (self.path / "pooled" / path.name for path in self._round_paths() if int(path.stem) > after)
        found = [round_files.table(path) for path in paths if path.exists()]
        return pa.concat_tables([POOLED_SCHEMA.empty_table(), *found])

    def last_good(
        self, config_digest: str, personal_of: PersonalOf | None = None
    ) -> tuple[State, dict[str, Any]] | None:
        """Return the newest readable state with its reference; None: start from the beginning.

        Later rounds are removed with a warning and will be run again. Requires `lock`. Raises `RunError` if the run
        belongs to another configuration, `AccessError` if a round may not be read.
        """
        if config_digest != (own := self.identity["config_digest"]):
            raise RunError(f"{self.path}: belongs to configuration {own}, not {config_digest}; start a new run")
        good = list(takewhile(round_files.is_intact, self._round_paths()))  # those after a damaged one do not count
        found = None
        while good and found is None:
            try:
                reference = round_files.reference(good[-1])
                load = partial(checkpoint.load, scratch=self.path, personal_of=personal_of)
                found = load(self.checkpoints, reference, config_digest), reference
            except AccessError:  # not a reason to drop the round
                raise
            except RunError as error:
                log.warning("%s", error)
                good.pop()
        for path in self._round_paths()[len(good) :]:
            log.warning("round %d is dropped and will be run again", int(path.stem))
            self._remove(path)
        vars(self).pop("_known", None)  # read again
        sync_folder(self._rounds)
        self._prune()
        return found

    @property
    def best(self) -> int | None:
        """The first round with the best `metrics.selection_score`; None: no score."""
        scores = {number: score for number, (score, _) in self._known.items() if score is not None}
        return max(scores, key=lambda number: (scores[number], -number), default=None)

    def state_at(self, number: int, arrays: bool = False, **which: Any) -> State:
        """Load the state after one of the last two rounds or the best one; `which`: see `checkpoint.load`."""
        if number not in self._known:
            raise RunError(f"{self.path}: has no round {number}")
        if not self.checkpoints.is_dir():
            raise RunError(f"{self.path.name}: its checkpoints are not here, this is a copy for reading rows")
        reference, digest = self._known[number][1], self.identity["config_digest"]
        return checkpoint.load(self.checkpoints, reference, digest, arrays, **which)

    def save_confusion(self, table: pa.Table) -> None:
        """Write the confusion matrix after the last round, in `metrics.CONFUSION_SCHEMA`."""
        self._put("confusion.arrow", round_files.arrow_bytes(table.cast(CONFUSION_SCHEMA)))

    @property
    def confusion(self) -> pa.Table | None:
        """The table given to `save_confusion`; None before."""
        path = self.path / "confusion.arrow"
        return round_files.table(path) if path.exists() else None

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write all rounds and client rows as one file each, then the summary and the status `finished`."""
        lines = [json.dumps(dataclasses.asdict(row)) + "\n" for row in self.rounds()]
        self._put("rounds.jsonl", "".join(lines).encode())
        round_files.join(self._round_paths(), self.path / "clients.arrow")
        self._send_file("clients.arrow")
        self._write_json("summary.json", {"run": self.path.name, "status": "finished", **summary})
        self.set_status("finished")

    def fail(self, reason: str, traceback: str | None = None) -> None:
        """Set the status to `failed`, and write `traceback.txt`."""
        if traceback is not None:
            self._put("traceback.txt", traceback.encode())
        self.set_status("failed", reason)

    def stop(self, reason: str) -> None:
        """Set the status to `stopped`: ended by a signal, or early by a scheduler."""
        self.set_status("stopped", reason)

    def _prune(self) -> None:
        """Delete all checkpoints but those of the last rounds and of the best one."""
        references = self._known
        newest = sorted(references)[-KEPT_CHECKPOINTS:]
        kept = [references[number][1] for number in {*newest, *([self.best] if self.best else [])}]
        for path in checkpoint.superfluous(self.checkpoints, set().union(*map(checkpoint.files_of, kept))):
            self._remove(path)

    @cached_property
    def _known(self) -> dict[int, tuple[float | None, dict[str, Any]]]:
        """Validation score and checkpoint reference of every round; read once, then updated by `commit`."""
        return {
            int(path.stem): (selection_score(round_files.row(path).metrics), round_files.reference(path))
            for path in self._round_paths()
        }

    def _round_paths(self) -> list[Path]:
        check_readable(self._rounds)
        return sorted(self._rounds.glob("[0-9]*.arrow"))
