"""Shared by the tests of storage: an object store on the local disk, and a server that answers like S3."""

from __future__ import annotations

import pytest
from pyarrow import fs
from s3_server import serving

from fedpgp.storage import object_store
from fedpgp.storage.object_store import ObjectStore


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
        self.files.create_dir(path.rpartition("/")[0], recursive=True)
        return self.files.open_output_stream(path)

    def open_input_stream(self, path):
        if self.files.get_file_info(path).type == fs.FileType.NotFound:
            raise FileNotFoundError(path)
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
    monkeypatch.setattr(object_store, "WAITS", ())
    monkeypatch.setattr(ObjectStore, "at", lambda uri: ObjectStore(fs.PyFileSystem(handler), "kept"))
    return handler


@pytest.fixture
def s3(monkeypatch):
    """A server that answers like S3, with an empty `bucket`."""
    monkeypatch.setattr(object_store, "WAITS", ())
    with serving() as server:
        yield server
