"""Object stores: complete objects, copies, names that lead astray, and what is said if one cannot be used."""

from __future__ import annotations

import errno
import os

import pytest
from pyarrow import fs
from s3_server import SECRET, serving

from fedpgp.core.errors import RunError, StorageError
from fedpgp.storage import object_store
from fedpgp.storage.object_store import ObjectStore, before_work


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
    with pytest.raises(RunError, match=r"nowhere://\.\.\.; use a URI that pyarrow\.fs knows") as refused:
        ObjectStore.at("nowhere://me:secret@host/x")
    assert "secret" not in str(refused.value)


def test_a_server_like_s3_stores_lists_and_gives_back(s3, tmp_path):
    there = ObjectStore.at(s3.uri("kept")) / "runs"
    assert (there.names(), there.objects(), there.read("a.txt")) == ([], {}, None)
    there.put("a.txt", b"first")
    there.put("b/c.txt", b"x" * 100_000)
    there.put("b/empty", b"")
    assert sorted(s3.objects["bucket"]) == ["kept/runs/a.txt", "kept/runs/b/c.txt", "kept/runs/b/empty"]  # no folders
    assert (there.names(), there.read("a.txt"), there.read("b/empty")) == (["a.txt", "b"], b"first", b"")
    assert {name: item.size for name, item in there.objects().items()} == {"a.txt": 5, "b/c.txt": 100_000, "b/empty": 0}
    there.fetch(tmp_path)
    assert (tmp_path / "b" / "c.txt").read_bytes() == b"x" * 100_000
    there.delete("a.txt")
    there.delete("a.txt")
    assert there.names() == ["b"]


def test_a_copy_fetches_only_what_changed_and_removes_what_is_gone(bucket, tmp_path):
    there = ObjectStore(fs.PyFileSystem(bucket), "kept")
    for name in ("a.txt", "b/c.txt", "b/d.txt", "status.json", ".claims/x.json"):
        there.put(name, name.encode())
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / ".lock").touch()
    read, plain = [], bucket.open_input_stream
    bucket.open_input_stream = lambda path: (read.append(path.removeprefix("kept/")), plain(path))[1]
    there.fetch(tmp_path / "copy", lambda name: name != "a.txt")
    assert sorted(read[:-1]) == ["b/c.txt", "b/d.txt"]
    assert read[-1] == "status.json"  # says that the rest is complete
    del read[:]
    there.put("b/c.txt", b"other")
    there.delete("b/d.txt")
    there.fetch(tmp_path / "copy")
    assert sorted(read) == ["a.txt", "b/c.txt"]
    files = {
        path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*") if path.is_file()
    }
    assert files == {".lock", "a.txt", "b/c.txt", "status.json"}
    assert (tmp_path / "copy" / "b" / "c.txt").read_bytes() == b"other"


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (
            (403, "AccessDenied"),
            "access denied: the credentials are missing or wrong, or do not permit it; set AWS_ACCESS_KEY",
        ),
        ((403, "InvalidAccessKeyId"), "the credentials are wrong or have expired; set AWS_ACCESS_KEY_ID"),
        ((403, "SignatureDoesNotMatch"), "the credentials are wrong or have expired"),
        ((400, "ExpiredToken"), "the credentials are wrong or have expired"),
        ((404, "NoSuchBucket"), "no such bucket; create it, or correct the URI"),
        ((403, "QuotaExceeded"), "the bucket is full or over its quota"),  # of Ceph
        ((400, "XMinioAdminBucketQuotaExceeded"), "the bucket is full or over its quota"),
        ((507, "XMinioStorageFull"), "the bucket is full or over its quota"),
        ((301, "PermanentRedirect"), "the bucket is in another region; give region=REGION"),
        ((400, "AuthorizationHeaderMalformed"), "the bucket is in another region; give region=REGION"),
    ],
)
def test_what_lasts_is_said_in_one_line_and_not_tried_again(s3, monkeypatch, refusal, told):
    monkeypatch.setattr(object_store, "WAITS", (1000,))
    s3.refusal = refusal
    there = ObjectStore.at(s3.uri("kept"))
    with pytest.raises(StorageError) as failed:
        there.put("a.txt", b"first")
    assert str(failed.value).startswith(f"s3://bucket/kept: {told}")
    assert failed.value.lasting
    assert SECRET not in str(failed.value)
    assert "\n" not in str(failed.value)
    with pytest.raises(RunError, match=r"^storage\.uri: s3://bucket/kept: "), before_work("storage.uri: "):
        there.make()


def test_what_may_pass_is_tried_again_until_it_works_or_time_is_up(bucket, monkeypatch, caplog):
    there, waits = ObjectStore(fs.PyFileSystem(bucket), "kept"), []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            bucket.broken = None

    monkeypatch.setattr(object_store.time, "sleep", wait)
    monkeypatch.setattr(object_store, "WAITS", (1, 2, 4))
    bucket.broken = "a.txt"
    there.put("a.txt", b"first")
    assert (waits, there.read("a.txt")) == ([1, 2], b"first")
    (told,) = [record.message for record in caplog.records]
    assert told == "s3://kept: no route to host; trying again for 7 seconds"
    bucket.broken = "b.txt"
    for expected in ([1, 2, 1, 2, 4], [1, 2, 1, 2, 4]):  # once it failed, nothing waits until something worked again
        with pytest.raises(StorageError, match="no route to host") as failed:
            there.put("b.txt", b"second")
        assert (waits, failed.value.lasting) == (expected, False)
    there.put("c.txt", b"third")
    with pytest.raises(StorageError):
        there.put("b.txt", b"second")
    assert waits == [1, 2, 1, 2, 4, 1, 2, 4]


def test_a_server_that_is_gone_is_no_lasting_failure(monkeypatch):
    monkeypatch.setattr(object_store, "WAITS", ())
    with serving() as server:
        there = ObjectStore.at(server.uri("kept"))
        there.put("a.txt", b"first")
    with pytest.raises(StorageError, match=r"NETWORK_CONNECTION.*; check the network, and the endpoint") as failed:
        there.put("a.txt", b"first")
    assert not failed.value.lasting
    assert SECRET not in str(failed.value)


def test_a_full_disk_lasts(bucket, monkeypatch):
    def full(path, metadata):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(object_store, "WAITS", (1000,))
    monkeypatch.setattr(bucket, "open_output_stream", full)
    with pytest.raises(StorageError, match="No space left on device"):
        ObjectStore(fs.PyFileSystem(bucket), "kept").put("a.txt", b"first")
