"""A file is the old one or the new one, and a lock has one holder."""

import os
import socket
import time
from contextlib import ExitStack

import pytest

from fedpgp.core import files
from fedpgp.core.errors import AccessError

FIRST, SECOND = 1501, 1502
"""Users of one group."""


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
        assert path.read_text() == f"{os.getpid()} on {socket.gethostname()}"
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


@pytest.mark.parametrize(
    ("mode", "writing", "may_not"),
    [
        (0o2700, False, ("read", "rx")),
        (0o2755, False, None),
        (0o2755, True, ("written", "w")),
        (0o2775, True, None),
        (0o2700, True, ("read or written", "rwx")),
    ],
)
def test_what_a_user_may_not_do_is_said_with_what_allows_it(shared_root, as_user, mode, writing, may_not):
    folder, expected = shared_root / "runs", None
    if may_not:
        verb, letters = may_not
        told = f"{folder} may not be {verb} by you (uid 1502); its owner (uid 1501) can allow it"
        expected = f"{told}: chmod g+{letters} {folder}"
    with as_user(FIRST):
        folder.mkdir()
        folder.chmod(mode)
        (folder / "file").touch()
    with as_user(SECOND):
        assert files.denied(folder, writing) == expected
        if not writing:  # what is inside has the same cause
            entered = files.denied(folder / "file")
            assert entered == (expected and expected.replace("g+rx", "g+x"))


def test_an_own_folder_and_one_of_strangers(shared_root, as_user):
    own, strange = shared_root / "own", shared_root / "strange"
    strange.mkdir(mode=0o700)
    os.chown(strange, 0, 0)
    with as_user(FIRST):
        own.mkdir(mode=0o500)
        assert files.denied(own / "new", writing=True) == (
            f"{own} may not be written by you (uid 1501); chmod u+w {own}"
        )
        assert files.denied(strange).endswith(f"its owner (uid 0) can allow it: chmod o+rx {strange}")
        with pytest.raises(AccessError, match=r"own may not be written by you \(uid 1501\); chmod u\+w"):
            files.write_durably(own / "status.json", b"")
        with pytest.raises(AccessError, match="own may not be written"):
            files.make_folder(own / "a" / "b")


def test_missing_paths_may_be_read(tmp_path):
    assert files.denied(tmp_path / "a" / "b") is None
    assert files.denied(tmp_path / "a" / "b", writing=True) is None
    assert files.folders_with("identity.json", tmp_path / "a") == []


def test_folders_that_may_not_be_entered_are_listed(shared_root, as_user):
    for name in ("a", "b", "c", "d"):
        (shared_root / name).mkdir()
        if name != "c":
            (shared_root / name / "identity.json").touch()
    (shared_root / "b").chmod(0o700)
    with as_user(SECOND):
        assert [path.name for path in files.folders_with("identity.json", shared_root)] == ["a", "b", "d"]
    shared_root.chmod(0o700)
    with as_user(SECOND), pytest.raises(AccessError, match="store may not be read by you"):
        files.folders_with("identity.json", shared_root)


def test_a_lock_that_may_only_be_read_still_excludes(shared_root, as_user):
    path = shared_root / "lock"
    path.write_text("the first")
    with as_user(SECOND), files.locked(path, wait=False):
        with pytest.raises(BlockingIOError), files.locked(path, wait=False):
            pass
        assert path.read_text() == "the first"
    path.chmod(0o600)
    with as_user(SECOND), pytest.raises(AccessError, match="lock may not be read"), files.locked(path):
        pass


@pytest.mark.parametrize(("folder", "lock"), [(0o775, 0o664), (0o755, 0o644), (0o700, 0o644)])
def test_a_lock_is_shared_with_the_group_if_its_folder_is(tmp_path, folder, lock):
    tmp_path.chmod(folder)
    before = os.umask(0o022)
    try:
        with files.locked(tmp_path / "lock"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "lock").stat().st_mode & 0o777 == lock
