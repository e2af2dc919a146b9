"""Run folders: committed rounds are kept, incomplete files are removed."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pytest
import torch

from fedpgp.core.errors import AccessError, FedPGPError, RunError
from fedpgp.federation.measures import POOLED_SCHEMA
from fedpgp.federation.metrics import CLIENT_SCHEMA, RoundRow
from fedpgp.federation.state import State
from fedpgp.storage import checkpoint
from fedpgp.storage.run_folder import RunFolder

DIGEST = "0123456789ab"


@pytest.fixture
def store(tmp_path):
    return RunFolder.create(tmp_path, "demo", DIGEST, "name: demo\n", {"method": "fedpgp"})


def commit(store, number):
    """One round with recognisable values."""
    state = State(number, {"ctx": torch.full((2,), float(number))}, {"u": torch.full((3, 1), -float(number))})
    reference = checkpoint.save(store.checkpoints, state, DIGEST)
    counts = {"round": number, "client": 0, "split": "test", "metric": "local", "correct": number, "total": 10}
    row = RoundRow(number, {"test/local": 10.0 * number}, 1, 100, 200, {"train": 0.5}, 1000 + number)
    store.commit(row, pa.Table.from_pylist([counts], CLIENT_SCHEMA), reference)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def damage(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_a_new_run_is_complete(store, tmp_path):
    assert store.path == tmp_path / "runs" / f"demo-{DIGEST}"
    assert names(tmp_path / "runs") == [f"demo-{DIGEST}"]
    opened = RunFolder.open(store.path)
    assert opened.config_yaml == "name: demo\n"
    assert opened.identity["method"] == "fedpgp"
    assert opened.identity["config_digest"] == DIGEST
    assert opened.status["state"] == "running"
    assert opened.summary is None
    assert opened.rounds() == []
    assert opened.clients().schema == CLIENT_SCHEMA


def test_runs_of_one_digest_are_numbered_and_the_newest_is_resumed(store, tmp_path):
    later = [RunFolder.create(tmp_path, "demo", DIGEST, "", {}).path.name for _ in range(9)]
    assert later == [f"demo-{DIGEST}.{number}" for number in range(2, 11)]
    RunFolder.create(tmp_path, "demo.2", DIGEST, "", {})
    RunFolder.create(tmp_path, "demo", "ba9876543210", "", {})
    assert RunFolder.find_resumable(tmp_path, "demo", DIGEST).path.name == f"demo-{DIGEST}.10"
    assert RunFolder.find_resumable(tmp_path, "other", DIGEST) is None
    assert RunFolder.find_resumable(tmp_path / "nowhere", "demo", DIGEST) is None


def test_another_folder_is_not_a_run(tmp_path):
    with pytest.raises(RunError, match="not a run folder"):
        RunFolder.open(tmp_path)


def test_pooled_counts_are_those_of_committed_rounds(store):
    """A round of an older version has none; those of a round that was not committed do not count."""
    commit(store, 1)
    tables = [
        pa.Table.from_pylist(
            [{"round": number, "split": "test", "metric": "local", "bin": 14, "images": number}], POOLED_SCHEMA
        )
        for number in (2, 3)
    ]
    for table in tables:
        number = table["round"][0].as_py()
        store.commit(RoundRow(number, {}, 1, 0, 0), CLIENT_SCHEMA.empty_table(), {"files": []}, table)
    assert store.pooled().equals(pa.concat_tables(tables))
    assert store.pooled(after=2).equals(tables[1])
    (store.path / "rounds" / "000003.arrow").unlink()
    assert store.pooled().equals(tables[0])


def test_rounds_are_read_as_committed(store):
    commit(store, 1)
    commit(store, 2)
    assert store.rounds() == [
        RoundRow(1, {"test/local": 10.0}, 1, 100, 200, {"train": 0.5}, 1001),
        RoundRow(2, {"test/local": 20.0}, 1, 100, 200, {"train": 0.5}, 1002),
    ]
    assert [row.round for row in store.rounds(after=1)] == [2]
    assert store.clients().schema.equals(CLIENT_SCHEMA, check_metadata=True)
    assert store.clients()["correct"].to_pylist() == [1, 2]


def test_a_round_is_committed_once(store):
    commit(store, 1)
    with pytest.raises(FedPGPError, match="round 1 is already committed"):
        commit(store, 1)


def test_the_last_two_checkpoints_are_kept(store):
    for number in (1, 2, 3, 4):
        commit(store, number)
    assert names(store.checkpoints) == ["000003.safetensors", "000004.safetensors"]
    state, reference = store.last_good(DIGEST)
    assert state.round == reference["round"] == 4
    assert state.personal["u"].tolist() == [[-4.0]] * 3


def test_a_round_with_a_truncated_checkpoint_is_dropped(store, caplog):
    for number in (1, 2, 3):
        commit(store, number)
    damage(store.checkpoints / "000003.safetensors")
    state, _ = store.last_good(DIGEST)
    assert state.shared["ctx"].tolist() == [2.0, 2.0]
    assert [row.round for row in store.rounds()] == [1, 2]
    assert names(store.checkpoints) == ["000002.safetensors"]
    assert "round 3 is dropped and will be run again" in caplog.text
    assert "truncated checkpoint" in caplog.text
    commit(store, 3)
    assert store.last_good(DIGEST)[0].round == 3


def test_a_truncated_round_is_dropped(store):
    commit(store, 1)
    commit(store, 2)
    damage(store.path / "rounds" / "000002.arrow")
    with pytest.raises(RunError, match=r"000002.arrow: round cannot be read .* resuming the run repairs it"):
        store.rounds()
    assert store.last_good(DIGEST)[0].round == 1
    assert [row.round for row in store.rounds()] == [1]


def test_without_a_readable_checkpoint_the_run_starts_over(store):
    assert store.last_good(DIGEST) is None
    commit(store, 1)
    commit(store, 2)
    for path in store.checkpoints.iterdir():
        damage(path)
    assert store.last_good(DIGEST) is None
    assert store.rounds() == []
    assert names(store.checkpoints) == []


def test_a_checkpoint_without_its_round_does_not_count(store):
    commit(store, 1)
    checkpoint.save(store.checkpoints, State(2, {}, {}), DIGEST)  # killed before the commit
    assert store.last_good(DIGEST)[0].round == 1
    assert names(store.checkpoints) == ["000001.safetensors"]


def test_a_run_of_another_configuration_is_refused_and_unchanged(store):
    commit(store, 1)
    with pytest.raises(RunError, match=f"belongs to configuration {DIGEST}, not ffff"):
        store.last_good("ffff")
    assert len(store.rounds()) == 1


def test_a_second_writer_is_refused_until_the_first_is_gone(store):
    code = "import sys; from pathlib import Path; from fedpgp.storage.run_folder import RunFolder\n"
    code += "with RunFolder.open(Path(sys.argv[1])).lock(): print('mine', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, store.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "mine\n"
        with pytest.raises(RunError, match=f"in use by pid {process.pid}"), store.lock():
            pass
        process.kill()
    with store.lock():
        pass


def test_the_lock_removes_what_a_killed_writer_left(store):
    store.fail("killed")
    leftover = store.path / "rounds" / ".tmp-1-000001.arrow"
    leftover.write_bytes(b"half")
    with store.lock():
        assert not leftover.exists()
        assert store.status["state"] == "running"


def test_an_error_under_the_lock_is_not_converted(store):
    with pytest.raises(BlockingIOError, match="mine"), store.lock():
        raise BlockingIOError("mine")


def test_a_finished_run_is_compacted(store):
    commit(store, 1)
    commit(store, 2)
    store.finish({"method": "fedpgp"})
    lines = [json.loads(line) for line in (store.path / "rounds.jsonl").read_text().splitlines()]
    assert [line["metrics"]["test/local"] for line in lines] == [10.0, 20.0]
    table = pa.ipc.open_file(store.path / "clients.arrow").read_all()
    assert table.equals(store.clients())
    assert store.summary == {"run": store.path.name, "status": "finished", "method": "fedpgp"}
    assert store.status["state"] == "finished"


def test_failed_and_stopped_statuses(store):
    store.fail("client 3, round 2, train: loss is nan")
    assert (store.status["state"], store.status["reason"]) == ("failed", "client 3, round 2, train: loss is nan")
    store.stop("SIGTERM")
    assert (store.status["state"], store.status["reason"]) == ("stopped", "SIGTERM")


def test_the_best_checkpoint_by_validation_is_kept(store):
    scores = {1: 10.0, 2: 70.0, 3: 50.0, 4: 70.0, 5: 60.0, 6: 5.0}
    for number, score in scores.items():
        state = State(number, {"ctx": torch.full((2,), float(number))}, {})
        reference = checkpoint.save(store.checkpoints, state, DIGEST)
        row = RoundRow(number, {"val/local": score, "test/local": 100.0 - score}, 1, 0, 0)
        store.commit(row, CLIENT_SCHEMA.empty_table(), reference)
    assert store.best == 2
    assert names(store.checkpoints) == [f"00000{number}.safetensors" for number in (2, 5, 6)]
    assert RunFolder.open(store.path).state_at(2).shared["ctx"].tolist() == [2.0, 2.0]
    with pytest.raises(RunError, match=r"000003\.safetensors: checkpoint cannot be read"):
        store.state_at(3)


def test_rounds_after_a_damaged_one_are_dropped(store, caplog):
    for number in (1, 2, 3):
        commit(store, number)
    damage(store.path / "rounds" / "000002.arrow")
    state, _ = store.last_good(DIGEST) or (None, None)
    # Its own checkpoint and the next are there, the first is not kept any more: all begins anew.
    assert state is None
    assert names(store.path / "rounds") == []
    assert "round 3 is dropped and will be run again" in caplog.text


def made_with(torch, **more):
    return {"versions": {"torch": torch}, **more}


def test_rounds_made_with_other_versions_are_recorded(tmp_path):
    store = RunFolder.create(tmp_path, "demo", DIGEST, "", made_with("2.3"))
    assert store.continue_with(3, made_with("2.3")) == {}
    assert "stretches.json" not in names(store.path)
    assert store.continue_with(4, made_with("2.5")) == {"torch": ["2.3", "2.5"]}
    assert store.continue_with(6, made_with("2.5")) == {}
    assert store.continue_with(8, made_with("2.6")) == {"torch": ["2.5", "2.6"]}
    assert [(one["first_round"], one["versions"]["torch"]) for one in RunFolder.open(store.path).stretches] == [
        (1, "2.3"), (4, "2.5"), (8, "2.6"),
    ]  # fmt: skip


def test_dropped_rounds_leave_no_record(tmp_path):
    """Rounds 4 to 7 were dropped, then all: what made them does not count any more."""
    store = RunFolder.create(tmp_path, "demo", DIGEST, "", made_with("2.3"))
    store.continue_with(5, made_with("2.5"))
    assert store.continue_with(4, made_with("2.6")) == {"torch": ["2.3", "2.6"]}
    assert [one["first_round"] for one in store.stretches] == [1, 4]
    assert store.continue_with(1, made_with("2.6")) == {}
    assert store.stretches == [{"first_round": 1, **made_with("2.6")}]


def test_a_run_of_other_images_is_not_resumed(tmp_path):
    paths = [
        RunFolder.create(tmp_path, "demo", DIGEST, "", {"content_digest": content} if content else {}).path
        for content in (None, "one", "two")
    ]
    found = [RunFolder.find_resumable(tmp_path, "demo", DIGEST, content=content) for content in ("two", "one", "three")]
    assert [store.path for store in found] == [paths[2], paths[1], paths[0]]  # the first has no record: earlier code
    assert RunFolder.find_resumable(tmp_path, "demo", DIGEST).path == paths[2]


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o2775), (0o022, 0o2755), (0o077, 0o2700)])
def test_a_run_has_the_modes_of_the_umask_and_the_group_of_the_root(shared_root, as_user, umask, mode):
    with as_user(1501, umask):
        store = RunFolder.create(shared_root, "demo", DIGEST, "", {})
        commit(store, 1)
    for path in (shared_root / "runs", store.path, *store.path.rglob("*")):
        expected = mode if path.is_dir() else mode & 0o666
        assert (path.stat().st_mode & 0o7777, path.stat().st_gid) == (expected, 1500), path


def test_runs_that_may_not_be_read_are_not_left_out(shared_root, as_user):
    stores = [RunFolder.create(shared_root, name, DIGEST, "", {}) for name in ("a", "b", "c")]
    (stores[1].path).chmod(0o700)
    with as_user(1502):
        found = RunFolder.find(shared_root)
        assert [store.path.name[0] for store in found] == ["a", "b", "c"]
        with pytest.raises(AccessError, match=r"b-0123456789ab may not be read by you \(uid 1502\)"):
            found[1].rounds()
        with pytest.raises(AccessError, match="may not be read"):
            RunFolder.open(stores[1].path)
    (shared_root / "runs").chmod(0o700)
    with as_user(1502):
        with pytest.raises(AccessError, match="runs may not be read"):
            RunFolder.find(shared_root)
        with pytest.raises(AccessError, match="runs may not be read"):
            RunFolder.find_resumable(shared_root, "a", DIGEST)


@pytest.mark.parametrize("name", ["rounds/000002.arrow", "checkpoints/000002.safetensors"])
def test_a_round_that_may_not_be_read_is_not_dropped(shared_root, as_user, name):
    with as_user(1501, 0o002):
        store = RunFolder.create(shared_root, "demo", DIGEST, "", {})
        commit(store, 1)
        commit(store, 2)
        (store.path / name).chmod(0o600)
    refused = pytest.raises(AccessError, match=f"{os.path.basename(name)} may not be")
    with as_user(1502, 0o002), RunFolder.open(store.path).lock(), refused:
        RunFolder.open(store.path).last_good(DIGEST)
    assert (store.path / name).exists()
