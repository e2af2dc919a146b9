"""Runs in an object store: the order of uploads, and resuming with only the URI."""

from __future__ import annotations

import shutil

import pyarrow as pa
import pytest
import torch
from pyarrow import fs

from fedpgp.core.errors import FedPGPError, RunError
from fedpgp.federation.metrics import CLIENT_SCHEMA, RoundRow
from fedpgp.federation.state import State
from fedpgp.storage import checkpoint
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.run_index import ObjectStore

DIGEST = "0123456789ab"


class Bucket(fs.FileSystemHandler):
    """An object store on the local disk: no appends, no renames, no empty folders; it notes what is done to it."""

    def __init__(self, folder):
        self.files = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
        self.done, self.broken = [], None

    def get_type_name(self):
        return "s3"

    def normalize_path(self, path):
        return path

    def get_file_info(self, paths):
        return self.files.get_file_info(paths)

    def get_file_info_selector(self, selector):
        return self.files.get_file_info(selector)

    def create_dir(self, path, recursive):
        self.files.create_dir(path, recursive=recursive)

    def delete_file(self, path):
        self.done.append(("delete", path))
        self.files.delete_file(path)

    def open_output_stream(self, path, metadata):
        if self.broken and self.broken in path:
            raise OSError("no route to host")
        self.done.append(("put", path))
        return self.files.open_output_stream(path)

    def open_input_stream(self, path):
        return self.files.open_input_stream(path)

    def open_input_file(self, path):
        return self.files.open_input_file(path)

    def _refused(self, *arguments, **named):
        raise NotImplementedError

    move = copy_file = open_append_stream = delete_dir = delete_dir_contents = delete_root_dir_contents = _refused


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The bucket that the URI `s3://bucket` stands for."""
    (tmp_path / "bucket").mkdir()
    handler = Bucket(tmp_path / "bucket")
    monkeypatch.setattr(ObjectStore, "at", lambda uri: ObjectStore(fs.PyFileSystem(handler), "kept"))
    return handler


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
    with pytest.raises(FedPGPError, match="no route to host"):
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
    with pytest.raises(FedPGPError, match="no route to host"):
        new(tmp_path / "a")
    assert list((tmp_path / "a" / "runs").iterdir()) == []
    assert found(tmp_path / "b") is None
    bucket.broken = None
    assert new(tmp_path / "a").path.name == f"demo-{DIGEST}.2"
    assert found(tmp_path / "b").path.name == f"demo-{DIGEST}.2"


def test_objects_on_a_local_disk_are_renamed_once_complete(tmp_path):
    there = ObjectStore.at((tmp_path / "kept").as_uri()) / "x"
    assert there.names() == []
    there.put("a/b.txt", b"first")
    there.put("a/b.txt", b"second")
    assert [path.name for path in (tmp_path / "kept" / "x" / "a").iterdir()] == ["b.txt"]
    (tmp_path / "copy").mkdir()
    there.fetch(tmp_path / "copy")
    assert (tmp_path / "copy" / "a" / "b.txt").read_bytes() == b"second"
    there.delete("a/b.txt")
    there.delete("a/b.txt")
    assert (there / "a").names() == []


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, bucket, monkeypatch):
    there = ObjectStore(fs.PyFileSystem(bucket), "kept")
    there.put("a.txt", b"good")
    listed = bucket.get_file_info_selector
    hostile = fs.FileInfo("kept/../../escaped.txt", fs.FileType.File)
    monkeypatch.setattr(bucket, "get_file_info_selector", lambda selector: [*listed(selector), hostile])
    (tmp_path / "copy").mkdir()
    with pytest.raises(RunError, match=r"kept/\.\./\.\./escaped\.txt leads out of its folder"):
        there.fetch(tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []


def test_an_in_memory_file_system():
    there = ObjectStore(*fs.FileSystem.from_uri("mock:///kept"))
    there.make()
    there.put("a/b.txt", b"first")
    assert (there.names(), (there / "a").names()) == (["a"], ["b.txt"])


def test_an_unknown_uri_is_refused_without_showing_its_password():
    with pytest.raises(RunError, match=r"storage\.uri: .*nowhere://\.\.\.; use a URI that pyarrow\.fs knows"):
        ObjectStore.at("nowhere://me:secret@host/x")
