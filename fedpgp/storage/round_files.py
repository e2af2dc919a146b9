"""The file of a round: an immutable Arrow file with client rows, round row and checkpoint reference."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from fedpgp.core.errors import AccessError, RunError
from fedpgp.core.files import access_errors, durable_file
from fedpgp.federation.metrics import CLIENT_SCHEMA, RoundRow

log = logging.getLogger(__name__)

COMPRESSED = pa.ipc.IpcWriteOptions(compression="zstd")


def encode(row: RoundRow, clients: pa.Table, reference: Mapping[str, Any]) -> bytes:
    """Encode a round: its row, the client rows in `metrics.CLIENT_SCHEMA`, and the reference from `checkpoint.save`."""
    metadata = {"round": json.dumps(dataclasses.asdict(row)), "checkpoint": json.dumps(dict(reference))}
    return arrow_bytes(clients.cast(CLIENT_SCHEMA).replace_schema_metadata(metadata))


def row(path: Path) -> RoundRow:
    """Read the round's row."""
    try:
        return RoundRow(**_metadata(path, "round"))
    except TypeError as error:
        raise RunError(f"{path}: round of another format ({error}); resuming the run repairs it") from None


def reference(path: Path) -> dict[str, Any]:
    """Read the checkpoint reference, for `checkpoint.load`."""
    return _metadata(path, "checkpoint")


def table(path: Path) -> pa.Table:
    """Read the table: client rows in `metrics.CLIENT_SCHEMA`, or the content of another Arrow file."""
    return _decoded(_read(path).read_all()).replace_schema_metadata()


def is_intact(path: Path) -> bool:
    """Whether the whole file can be read; if not, log a warning. Raise `AccessError` if this user may not read it."""
    try:
        _read(path).read_all()
    except AccessError:
        raise
    except (RunError, pa.ArrowInvalid, OSError) as error:
        log.warning("%s", error)
        return False
    return True


def arrow_bytes(table: pa.Table) -> bytes:
    """Encode a table as a compressed Arrow file, in which each text of a column is stored once."""
    texts = [number for number, field in enumerate(table.schema) if pa.types.is_string(field.type)]
    for number in texts:
        table = table.set_column(number, table.column_names[number], table[number].dictionary_encode())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=COMPRESSED) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def join(paths: Sequence[Path], target: Path) -> None:
    """Write the client rows of rounds into one Arrow file durably, one round after the other."""
    with durable_file(target) as file, pa.ipc.new_file(file, CLIENT_SCHEMA, options=COMPRESSED) as writer:
        for path in paths:
            writer.write_table(table(path))


def _decoded(table: pa.Table) -> pa.Table:
    """The table with plain texts; files of older versions have no others."""
    for number, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(number, field.name, table[number].cast(field.type.value_type))
    return table


def _read(path: Path) -> pa.RecordBatchFileReader:
    try:
        with access_errors(path):
            return pa.ipc.open_file(pa.memory_map(str(path)))
    except (pa.ArrowInvalid, OSError) as error:
        raise RunError(f"{path}: round cannot be read ({error}); resuming the run repairs it") from None


def _metadata(path: Path, key: str) -> dict[str, Any]:
    metadata = _read(path).schema.metadata or {}
    try:
        content: dict[str, Any] = json.loads(metadata[key.encode()])
    except (KeyError, ValueError):
        raise RunError(f"{path}: is not a round ({key} is missing); resuming the run repairs it") from None
    return content
