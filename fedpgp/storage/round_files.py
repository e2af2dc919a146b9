"""A round on disk: one immutable Arrow file with the clients' rows, the round's row and where its checkpoint is."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from fedpgp.core.errors import RunError
from fedpgp.federation.records import CLIENT_SCHEMA, RoundRow

log = logging.getLogger(__name__)


def encode(row: RoundRow, clients: pa.Table, reference: Mapping[str, Any]) -> bytes:
    """The content of the file.

    Args:
        clients: the round's rows, in `records.CLIENT_SCHEMA`.
        reference: what `checkpoint.save` returned.
    """
    metadata = {"round": json.dumps(dataclasses.asdict(row)), "checkpoint": json.dumps(dict(reference))}
    return arrow_bytes(clients.cast(CLIENT_SCHEMA).replace_schema_metadata(metadata))


def row(path: Path) -> RoundRow:
    """The round's row."""
    told = _metadata(path, "round")
    try:
        return RoundRow(**told)
    except TypeError as error:
        raise RunError(f"{path}: is a round in another form ({error}); resuming the run repairs it") from None


def reference(path: Path) -> dict[str, Any]:
    """The reference to its checkpoint, as `checkpoint.load` takes it."""
    return _metadata(path, "checkpoint")


def table(path: Path) -> pa.Table:
    """The clients' rows, in `records.CLIENT_SCHEMA`, or what else the file holds."""
    return _read(path).read_all().replace_schema_metadata()


def is_intact(path: Path) -> bool:
    """Whether all of it can be read; if not, a warning says why."""
    try:
        _read(path).read_all()
    except (RunError, pa.ArrowInvalid, OSError) as error:
        log.warning("%s", error)
        return False
    return True


def arrow_bytes(table: pa.Table) -> bytes:
    """A table as an Arrow file, compressed: the rows of many clients repeat the same few words."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _read(path: Path) -> pa.RecordBatchFileReader:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (pa.ArrowInvalid, OSError) as error:
        raise RunError(f"{path}: round cannot be read ({error}); resuming the run repairs it") from None


def _metadata(path: Path, key: str) -> dict[str, Any]:
    metadata = _read(path).schema.metadata or {}
    try:
        content: dict[str, Any] = json.loads(metadata[key.encode()])
    except (KeyError, ValueError):
        raise RunError(f"{path}: is not a round (it has no {key}); resuming the run repairs it") from None
    return content
