"""A file is the old one or the new one, and a lock has one holder."""

import os
import time
from contextlib import ExitStack

import pytest

from fedpgp.core import files


def test_a_write_that_is_cut_short_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    files.write_durably(path, b"old")

    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        files.write_durably(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_write_replaces_the_whole_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "status.json"
    files.write_durably(path, b"a longer content")
    files.write_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_has_one_holder_and_names_it(tmp_path):
    path = tmp_path / "lock"
    with files.locked(path):
        assert path.read_text() == str(os.getpid())
        with pytest.raises(BlockingIOError), files.locked(path, wait=False):
            pass
    with files.locked(path, wait=False):
        pass


def test_looking_at_a_lock_takes_nothing_from_anybody(tmp_path, monkeypatch):
    """Others who look see the same, the holder's name stays, and who wants the lock has it as soon as they are gone."""
    path = tmp_path / "lock"
    path.write_text("17")
    path.chmod(0o444)
    looking = ExitStack()
    looking.enter_context(files.shared_lock(path))
    with files.shared_lock(path):
        assert path.read_text() == "17"
    with pytest.raises(BlockingIOError), files.locked(path, wait=False):
        pass
    monkeypatch.setattr(time, "sleep", lambda seconds: looking.close())
    with files.locked(path, wait=False), pytest.raises(BlockingIOError), files.shared_lock(path):
        pass
