"""Runs in an object store: the order of uploads, and resuming with only the URI."""

from __future__ import annotations

import shutil

import pyarrow as pa
import pytest
import torch

from fedpgp.core.errors import StorageError
from fedpgp.federation.metrics import CLIENT_SCHEMA, RoundRow
from fedpgp.federation.state import State
from fedpgp.storage import checkpoint
from fedpgp.storage.run_folder import RunFolder

DIGEST = "0123456789ab"


def new(root):
    return RunFolder.create(root, "demo", DIGEST, "name: demo\n", {"method": "fedpgp"}, "s3://bucket")


def found(root):
    return RunFolder.find_resumable(root, "demo", DIGEST, "s3://bucket")


def commit(store, number):
    state = State(number, {"ctx": torch.full((2,), float(number))}, {})
    reference = checkpoint.save(store.checkpoints, state, DIGEST)
    counts = {"round": number, "client": 0, "split": "test", "metric": "local", "correct": number, "total": 10}
    store.commit(
        RoundRow(number, {"val/all": -number}, 1, 1, 1), pa.Table.from_pylist([counts], CLIENT_SCHEMA), reference
    )


def test_a_round_is_uploaded_after_its_checkpoint_and_before_the_local_write(tmp_path, bucket):
    store = new(tmp_path / "a")
    assert [path.rpartition("/")[2] for _, path in bucket.done] == ["config.yaml", "status.json", "identity.json"]
    del bucket.done[:]
    commit(store, 1)
    run = f"kept/runs/demo-{DIGEST}"
    assert bucket.done == [("put", f"{run}/checkpoints/000001.safetensors"), ("put", f"{run}/rounds/000001.arrow")]
    bucket.broken = "rounds/000002"
    with pytest.raises(StorageError, match="no route to host"):
        commit(store, 2)
    assert [row.round for row in store.rounds()] == [1]


def test_another_machine_resumes_with_only_the_uri(tmp_path, bucket):
    store = new(tmp_path / "a")
    with store.lock():
        for number in (1, 2, 3, 4):
            commit(store, number)
        store.stop("asked to stop")
    shutil.rmtree(tmp_path / "a")
    again = found(tmp_path / "b")
    assert again.path == tmp_path / "b" / "runs" / f"demo-{DIGEST}"
    with again.lock():
        state, _ = again.last_good(DIGEST)
        assert (state.round, state.shared["ctx"].tolist()) == (4, [4.0, 4.0])
        assert sorted(path.name for path in again.checkpoints.iterdir()) == [
            f"{number:06d}.safetensors" for number in (1, 3, 4)
        ]  # the best one and the last two; round 2's went away there, too
        commit(again, 5)
        again.finish({})
    assert found(tmp_path / "c").summary["status"] == "finished"
    assert [row.round for row in found(tmp_path / "c").rounds()] == [1, 2, 3, 4, 5]


def test_the_remote_copy_replaces_a_stale_local_one(tmp_path, bucket):
    commit(new(tmp_path / "a"), 1)
    commit(found(tmp_path / "b"), 2)
    stale = RunFolder.open(tmp_path / "a" / "runs" / f"demo-{DIGEST}")
    assert [row.round for row in stale.rounds()] == [1]
    with found(tmp_path / "a").lock():
        assert [row.round for row in stale.rounds()] == [1, 2]
        commit(found(tmp_path / "b"), 3)
        assert [row.round for row in found(tmp_path / "a").rounds()] == [1, 2]  # a writer's folder is left alone


def test_a_truncated_round_is_removed_remotely_too(tmp_path, bucket):
    store = new(tmp_path / "a")
    for number in (1, 2):
        commit(store, number)
    path = tmp_path / "bucket" / "kept" / "runs" / f"demo-{DIGEST}" / "rounds" / "000002.arrow"
    path.write_bytes(path.read_bytes()[:100])
    again = found(tmp_path / "b")
    state, _ = again.last_good(DIGEST)
    assert state.round == 1
    assert not path.exists()


def test_an_unpublished_run_is_ignored_but_its_name_is_not_reused(tmp_path, bucket):
    bucket.broken = "identity.json"
    with pytest.raises(StorageError, match="no route to host"):
        new(tmp_path / "a")
    assert list((tmp_path / "a" / "runs").iterdir()) == []
    assert found(tmp_path / "b") is None
    bucket.broken = None
    assert new(tmp_path / "a").path.name == f"demo-{DIGEST}.2"
    assert found(tmp_path / "b").path.name == f"demo-{DIGEST}.2"
