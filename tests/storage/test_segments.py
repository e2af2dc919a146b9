"""Runs whose rows of clients are held on disk have the bits of others, also after a kill, a torn write and a move."""

import shutil

import numpy as np
import pytest
import torch
from one_weight import one_weight
from rounds import check_same_bits

from fedpgp.core.errors import RunError
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.client_rows import IN_MEMORY, FirstRows, OnDisk, Place
from fedpgp.federation.server import Server
from fedpgp.federation.state import State
from fedpgp.storage import checkpoint, segments
from fedpgp.storage.run_folder import RunFolder

DIGEST = "0123456789ab"
IMAGES = [[float(client**2 % 11)] for client in range(15)]
SETTINGS = {"images": IMAGES, "participation": 1 / 3, "rounds": 9}
RULES = pytest.mark.parametrize("rule", [None, {"name": "scaffold"}], ids=["fedavg", "scaffold"])


@pytest.fixture
def federation(tmp_path):
    """Makes the server of fifteen clients, of whom five train in a round; of some rounds it commits each to a run."""
    backend = SerialBackend(threads=1)

    def make(rule=None, place=IN_MEMORY):
        backend.load(job := one_weight(tmp_path, "a", rule=rule, **SETTINGS))
        return Server(job, backend, place)

    yield make
    backend.close()


def advance(server, store, rounds, state=None, reference=None):
    """Run that many rounds and commit them, as a run does."""
    state = state or server.initial_state()
    for _ in range(rounds):
        result = server.step(state)
        state = result.state
        reference = checkpoint.save(store.checkpoints, state, DIGEST, result.changed, reference)
        store.commit(result.row, result.clients, reference, result.pooled)
    return state, reference


def new(root, uri=None):
    return RunFolder.create(root, "demo", DIGEST, "name: demo\n", {"method": "sum"}, uri)


def on_disk(store):
    return Place(0, store.path)


@RULES
def test_rounds_on_disk_have_the_bits_of_those_in_memory(federation, tmp_path, rule):
    memory, disk = new(tmp_path / "memory"), new(tmp_path / "disk")
    left, _ = advance(federation(rule), memory, 9)
    right, reference = advance(federation(rule, on_disk(disk)), disk, 9)
    assert isinstance(right.personal, OnDisk)
    assert isinstance(right.kept, OnDisk) == (rule is not None)
    check_same_bits(left, right)
    check_same_bits(left, disk.state_at(9))
    assert disk.clients().equals(memory.clients())
    assert len(reference["files"]) == 9


@RULES
@pytest.mark.parametrize("done", [1, 4, 8])
def test_a_resumed_run_has_the_bits_and_files_of_an_uninterrupted_one(federation, tmp_path, monkeypatch, rule, done):
    monkeypatch.setattr(segments, "MOST_SEGMENTS", 3)
    whole, half = new(tmp_path / "whole"), new(tmp_path / "half")
    expected, files = advance(federation(rule, on_disk(whole)), whole, 9)
    advance(federation(rule, on_disk(half)), half, done)
    state, reference = RunFolder.open(half.path).last_good(DIGEST)
    assert isinstance(state.personal, OnDisk)
    state, again = advance(federation(rule, on_disk(half)), half, 9 - done, state, reference)
    check_same_bits(state, expected)
    assert again == files


@pytest.mark.parametrize("torn", ["truncated", "flipped", "missing"])
def test_a_torn_write_is_noticed_and_the_round_before_is_gone_on_from(federation, tmp_path, monkeypatch, torn):
    """Also where the torn file is one of several into which earlier ones were merged."""
    monkeypatch.setattr(segments, "MOST_SEGMENTS", 3)
    monkeypatch.setattr(segments, "FILE_BYTES", 8)  # two rows of one float
    store, whole = new(tmp_path / "torn"), new(tmp_path / "whole")
    expected, _ = advance(federation(None, on_disk(whole)), whole, 9)
    _, reference = advance(federation(None, on_disk(store)), store, 4)
    path = store.checkpoints / checkpoint.written_in(4, reference)[0]
    assert path.name == "000004-0000.safetensors"
    content = path.read_bytes()
    match torn:
        case "truncated":
            path.write_bytes(content[:-3])
        case "flipped":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "missing":
            path.unlink()
    again = RunFolder.open(store.path)
    state, reference = again.last_good(DIGEST)
    assert (state.round, [row.round for row in again.rounds()]) == (3, [1, 2, 3])
    state, _ = advance(federation(None, on_disk(again)), again, 6, state, reference)
    check_same_bits(state, expected)


def test_another_machine_resumes_with_only_the_uri(federation, tmp_path, bucket, monkeypatch):
    monkeypatch.setattr(segments, "MOST_SEGMENTS", 3)
    monkeypatch.setattr(segments, "FILE_BYTES", 8)
    whole, here = new(tmp_path / "whole"), new(tmp_path / "here", "s3://bucket")
    expected, _ = advance(federation(None, on_disk(whole)), whole, 9)
    advance(federation(None, on_disk(here)), here, 5)
    shutil.rmtree(tmp_path / "here")
    there = RunFolder.find_resumable(tmp_path / "there", "demo", DIGEST, "s3://bucket")
    state, reference = there.last_good(DIGEST)
    assert state.round == 5
    state, _ = advance(federation(None, on_disk(there)), there, 4, state, reference)
    check_same_bits(state, expected)
    stored = {path.name for path in (tmp_path / "bucket" / "kept").rglob("*.safetensors")}
    assert stored == {path.name for path in there.checkpoints.iterdir()}


def rows_of(folder, clients, first=None):
    return OnDisk(folder, clients, first or FirstRows({"u": torch.zeros(100)}))


def test_only_what_changed_is_written_and_segments_stay_few(tmp_path):
    """A thousand clients, five new ones in each of 150 rounds: each row is written few times, not in every base."""
    rows, reference, written = rows_of(tmp_path, 1000), None, 0
    for round in range(1, 151):
        clients = np.arange(5 * round, 5 * round + 5)
        rows.write(round, clients, {"u": np.full((5, 100), round, np.float32)})
        state = State(round, {"ctx": torch.ones(1)}, rows)
        reference = checkpoint.save(tmp_path, state, "d", clients, reference)
        written += sum(one["rows"] for one in reference["files"] if one["segment"] == round)
        assert len(reference["files"]) <= segments.MOST_SEGMENTS + 1
        for path in checkpoint.superfluous(tmp_path, checkpoint.files_of(reference)):
            path.unlink()
    assert sum(one["rows"] for one in reference["files"]) == 750
    assert written < 750 * 6
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 750 * 400 * 1.2 + 10_000
    loaded = checkpoint.load(tmp_path, reference, "d")
    assert torch.equal(loaded.personal["u"], rows["u"])
    assert loaded.personal["u"][:, 0].tolist() == [*[0] * 5, *np.repeat(np.arange(1, 151), 5), *[0] * 245]


def test_the_same_clients_take_the_space_of_themselves(tmp_path):
    """Of rows that are written again and again at most as many are kept as there are segments."""
    rows, reference = rows_of(tmp_path, 10), None
    for round in range(1, 61):
        rows.write(round, np.arange(10), {"u": np.full((10, 100), round, np.float32)})
        reference = checkpoint.save(tmp_path, State(round, {}, rows), "d", np.arange(10), reference)
    assert len(reference["files"]) <= segments.MOST_SEGMENTS
    assert checkpoint.load(tmp_path, reference, "d").personal["u"].unique().tolist() == [60]


def test_single_clients_are_loaded_alone_and_first_rows_that_differ_need_the_method(tmp_path):
    first = FirstRows({"u": torch.zeros(2)}, lambda client, tree: {"u": tree["u"] + client})
    rows = rows_of(tmp_path, 4, first)
    rows.write(1, np.array([1, 3]), {"u": np.full((2, 2), 9, np.float32)})
    reference = checkpoint.save(tmp_path, State(1, {}, rows), "d")
    with pytest.raises(RunError, match=r"000001\.safetensors: the first rows of clients differ by method"):
        checkpoint.load(tmp_path, reference, "d")
    assert checkpoint.load(tmp_path, reference, "d", clients=np.arange(0)).personal.num_bytes == 4 * 8  # reads none
    few = {"personal_of": first.personal_of, "clients": np.array([1])}
    own = checkpoint.load(tmp_path, reference, "d", **few).personal
    assert own["u"][:, 0].tolist() == [0, 9, 2, 3]  # client 3 was not asked for
    arrays = checkpoint.load(tmp_path, reference, "d", arrays=True, personal_of=first.personal_of)
    assert isinstance(arrays.personal["u"], np.ndarray)
    assert arrays.personal["u"][:, 0].tolist() == [0, 9, 2, 9]
