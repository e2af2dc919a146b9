"""Two machines and one run or sweep: the second is refused, unless the first was killed or was away for too long."""

from __future__ import annotations

import json
import shutil
import time

import pytest
from pyarrow import fs

from fedpgp.core.errors import RunError, StorageError
from fedpgp.storage import claims
from fedpgp.storage.claims import Claim, claimed
from fedpgp.storage.object_store import ObjectStore
from fedpgp.storage.objectives import Objectives
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Fold, Result, SweepFolder, TrialSpec

DIGEST = "0123456789ab"


@pytest.fixture
def folder(bucket):
    return ObjectStore(fs.PyFileSystem(bucket), "kept/sweeps/x")


@pytest.fixture
def hurry(monkeypatch):
    """Claims are renewed, looked at and stale in fractions of a second."""
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(claims, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(claims, "STALE_SECONDS", 1.0)


def there(folder):
    return [name for name in folder.objects() if name.startswith(".claims/")]


@pytest.mark.usefixtures("hurry")
def test_a_claim_that_is_renewed_refuses_others_and_goes_away(folder):
    with claimed(folder, "one", "this sweep"):
        assert there(folder) == [".claims/one.json"]
        with (
            pytest.raises(RunError, match=r"x/\.claims: this sweep is being run by pid \d+ on .*; wait for it"),
            claimed(folder, "two", "this sweep"),
        ):
            pass
        assert there(folder) == [".claims/one.json"]
    assert there(folder) == []


@pytest.mark.usefixtures("hurry")
def test_the_claim_of_a_killed_process_is_waited_for_and_then_removed(folder, caplog):
    folder.put(".claims/dead.json", json.dumps({"host": "far", "pid": 7}).encode())
    begun = time.monotonic()
    with claimed(folder, "two", "this sweep"):
        assert time.monotonic() - begun > 0.8
        assert there(folder) == [".claims/two.json"]
    (told,) = [record.message for record in caplog.records]
    assert told.startswith("this sweep was run by pid 7 on far 0 s ago: waiting up to ")


def test_the_next_process_of_the_same_root_takes_over_at_once(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(claims.time, "sleep", lambda seconds: pytest.fail("waits"))
    owner = claims.owner_of(tmp_path)
    folder.put(f".claims/{owner}.json", b"{}")
    with claimed(folder, owner, "this sweep"):
        pass
    shutil.copytree(tmp_path, tmp_path.with_name("copy"), dirs_exist_ok=True)
    assert claims.owner_of(tmp_path.with_name("copy")) != owner


def test_of_two_that_begin_at_once_one_is_refused(folder, monkeypatch):
    """The other one writes its claim between this one's write and list, and keeps it."""
    first, second = Claim(folder / ".claims", "first"), Claim(folder / ".claims", "second")
    first._write(folder / ".claims")
    monkeypatch.setattr(claims.time, "sleep", lambda seconds: first._write(folder / ".claims"))
    with pytest.raises(RunError, match="is being run by"):
        second.acquire("this run")
    assert there(folder) == [".claims/first.json"]


def test_a_process_that_was_asleep_stops_if_another_took_over(folder, monkeypatch):
    mine = Claim(folder / ".claims", "mine")
    mine.acquire("this run")
    mine.check()
    mine._written -= 2 * claims.STALE_SECONDS
    mine.check()  # nobody came: it goes on
    mine._written -= 2 * claims.STALE_SECONDS
    Claim(folder / ".claims", "theirs")._write(folder / ".claims")
    with pytest.raises(StorageError, match=r"taken over by pid \d+ on .*, because this process was asleep or offline"):
        mine.check()


@pytest.mark.usefixtures("bucket", "hurry")
def test_runs_and_sweeps_are_claimed_while_they_are_locked(tmp_path):
    def run(root):
        return RunFolder.find_resumable(root, "demo", DIGEST, "s3://bucket")

    RunFolder.create(tmp_path / "a", "demo", DIGEST, "", {}, "s3://bucket")
    with (
        run(tmp_path / "a").lock(),
        pytest.raises(RunError, match=r"runs/demo-0123456789ab/\.claims: this run is being run by pid"),
        run(tmp_path / "b").lock(),
    ):
        pass
    planned = [TrialSpec("0" * 12, "lr=1", {}, (Fold(1),))]

    def sweep(root):
        return SweepFolder.create(root, "demo", DIGEST, "", Objectives(("val/hm",)), planned, uri="s3://bucket")

    with (
        sweep(tmp_path / "a").lock(print),
        pytest.raises(RunError, match=r"sweeps/demo-0123456789ab/\.claims: this sweep is being run by pid"),
        sweep(tmp_path / "b").lock(print),
    ):
        pass


@pytest.mark.usefixtures("bucket")
def test_what_another_machine_wrote_before_the_lock_is_fetched_with_it(tmp_path):
    planned = [TrialSpec(f"{number:012d}", f"lr={number}", {}, (Fold(1),)) for number in (1, 2)]
    ours, theirs = (
        SweepFolder.create(tmp_path / root, "demo", DIGEST, "", Objectives(("val/hm",)), planned, uri="s3://bucket")
        for root in ("a", "b")
    )
    with theirs.lock(print):
        theirs.record(Result(planned[0].id, "failed", None, (), "oops"), "trace")
        theirs.set_status("failed", "1 trial(s) failed")
    assert ours.results() == {}
    with ours.lock(print):
        assert ours.results() == theirs.results()
        assert ours.traceback(planned[0].id) == "trace"
