"""The feature cache: what is stored, found again, refused, and done only once."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import threading
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest

from fedpgp.clip import feature_cache
from fedpgp.clip.feature_cache import (
    CHUNK_ROWS,
    Chunk,
    FeatureCache,
    FeatureKey,
    cache_path,
    extract,
    missing,
    write_shard,
)
from fedpgp.core.errors import AccessError, CacheError

KEY = FeatureKey(manifest="m" * 16, weights="w" * 16, transform="t" * 16)


def value(rows, views=1, shape=(3,)):
    """Features that tell their row, view and place: row + view / 10 + place / 100."""
    place = np.arange(np.prod(shape)).reshape(shape) / 100
    view = np.arange(views).reshape(1, views, *[1] * len(shape)) / 10
    return (np.asarray(rows).reshape(-1, 1, *[1] * len(shape)) + view + place).astype(np.float32)


class Runner:
    """Runs chunks here; remembers their rows; fails at the chunk with this number."""

    def __init__(self, key=KEY, fail_at=None, shape=(3,)):
        self.key, self.fail_at, self.shape = key, fail_at, shape
        self.seen: list[list[int]] = []

    def __call__(self, chunks):
        for number, chunk in enumerate(chunks):
            if number == self.fail_at:
                raise RuntimeError("lost")
            self.seen.append(chunk.rows.tolist())
            write_shard(chunk.shard, self.key, chunk.rows, value(chunk.rows, self.key.views, self.shape))
            yield chunk


def refusal(call, *args):
    with pytest.raises(CacheError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def silent(done, total):
    pass


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    assert CHUNK_ROWS == 256
    monkeypatch.setattr(feature_cache, "CHUNK_ROWS", 4)


def test_key_digest_depends_on_every_field():
    changed = [
        replace(KEY, manifest="x"),
        replace(KEY, weights="x"),
        replace(KEY, transform="x"),
        replace(KEY, views=2),
        replace(KEY, seed=1),
        replace(KEY, dtype="bfloat16"),
        replace(KEY, variant="patches"),
    ]
    assert len({key.digest for key in [KEY, *changed]}) == 8
    assert replace(KEY).digest == KEY.digest
    assert len(KEY.digest) == 16


def test_rows_come_back_in_the_order_asked_for(tmp_path):
    path = extract(tmp_path, KEY, np.array([30, 2, 17, 5, 9, 2, 40]), Runner(), silent)
    assert path == cache_path(tmp_path, KEY) == tmp_path / f"{KEY.digest}.arrow"
    cache = FeatureCache.open(path, KEY)
    assert cache.rows.tolist() == [2, 5, 9, 17, 30, 40]
    assert cache.shape == (3,)
    gathered = cache.gather(np.array([40, 2, 9, 2]))
    assert gathered.dtype == np.float32
    assert np.allclose(gathered, [[40, 40.01, 40.02], [2, 2.01, 2.02], [9, 9.01, 9.02], [2, 2.01, 2.02]])
    assert cache.gather(np.array([], dtype=np.int64)).shape == (0, 3)


def test_views_and_shapes(tmp_path):
    key = replace(KEY, views=3, seed=7)
    path = extract(tmp_path, key, np.arange(6), Runner(key, shape=(2, 2)), silent)
    cache = FeatureCache.open(path, key)
    assert cache.shape == (2, 2)
    assert np.allclose(cache.gather(np.array([5]), view=2), [[[5.2, 5.21], [5.22, 5.23]]])


def test_only_missing_rows_are_extracted_and_reported(tmp_path):
    first, second, third, told = Runner(), Runner(), Runner(), []
    extract(tmp_path, KEY, np.arange(6), first, lambda *at: told.append(at))
    assert first.seen == [[0, 1, 2, 3], [4, 5]]
    assert told == [(0, 6), (4, 6), (6, 6)]
    path = extract(tmp_path, KEY, np.array([1, 3, 5, 7, 0, 8]), second, silent)
    assert second.seen == [[7, 8]]
    extract(tmp_path, KEY, np.arange(6), third, silent)
    assert third.seen == []
    cache = FeatureCache.open(path, KEY)
    assert cache.rows.tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    assert np.array_equal(cache.gather(cache.rows[::-1]), value(cache.rows[::-1])[:, 0])
    assert {entry.name for entry in tmp_path.iterdir()} == {f"{KEY.digest}.arrow", f"{KEY.digest}.lock"}


def test_a_failed_extraction_goes_on_where_it_stopped(tmp_path):
    with pytest.raises(RuntimeError, match="lost"):
        extract(tmp_path, KEY, np.arange(12), Runner(fail_at=2), silent)
    assert not cache_path(tmp_path, KEY).exists()
    shards = sorted((tmp_path / f"{KEY.digest}.shards").iterdir())
    assert len(shards) == 2
    shards[1].write_bytes(shards[1].read_bytes()[:-40])  # torn
    (shards[0].parent / ".tmp-1-000000008.arrow").write_bytes(b"half")
    rest, told = Runner(), []
    path = extract(tmp_path, KEY, np.arange(2, 14), rest, lambda *at: told.append(at))
    assert rest.seen == [[4, 5, 6, 7], [8, 9, 10, 11], [12, 13]]
    assert told[0] == (2, 12)
    assert told[-1] == (12, 12)
    assert FeatureCache.open(path, KEY).rows.tolist() == list(range(14))
    assert not shards[0].parent.exists()


def test_shards_that_were_merged_before_a_crash_are_not_merged_twice(tmp_path):
    path = extract(tmp_path, KEY, np.arange(4), Runner(), silent)
    shards = tmp_path / f"{KEY.digest}.shards"
    shards.mkdir()
    write_shard(shards / "000000000.arrow", KEY, np.arange(4), value(np.arange(4)))
    extract(tmp_path, KEY, np.arange(6), Runner(), silent)
    assert FeatureCache.open(path, KEY).rows.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_runner_that_leaves_a_chunk_out_is_noticed(tmp_path):
    with pytest.raises(CacheError, match="no such feature cache"):
        extract(tmp_path, KEY, np.arange(8), lambda chunks: Runner()(chunks[:1]), silent)
    assert not cache_path(tmp_path, KEY).exists()


def test_the_second_process_waits_and_finds_it_done(tmp_path):
    runner = Runner()
    thread = threading.Thread(target=extract, args=(tmp_path, KEY, np.arange(4), runner, silent))
    with (tmp_path / f"{KEY.digest}.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert not runner.seen
        write_shard(cache_path(tmp_path, KEY), KEY, np.arange(4), value(np.arange(4)))
    thread.join(10)
    assert not thread.is_alive()
    assert runner.seen == []


def test_opening_copies_nothing_and_the_file_is_not_compressed(tmp_path):
    rows, blob = np.arange(1000), np.zeros((1000, 1, 512), np.float32)
    write_shard(tmp_path / "zeros.arrow", KEY, rows, blob)
    assert (tmp_path / "zeros.arrow").stat().st_size >= blob.nbytes
    before = pa.total_allocated_bytes()
    cache = FeatureCache.open(tmp_path / "zeros.arrow", KEY)
    assert pa.total_allocated_bytes() - before < 100_000
    assert not cache._blocks[0].flags.owndata
    assert not cache._blocks[0].flags.writeable
    assert cache.gather(rows).flags.writeable


@pytest.mark.parametrize(("limit", "batches"), [(1 << 28, 1), (199, 2), (1, 3)])
def test_shards_become_few_record_batches(tmp_path, monkeypatch, limit, batches):
    """10 rows of 8 + 12 bytes in shards of 4, 4 and 2."""
    monkeypatch.setattr(feature_cache, "BATCH_BYTES", limit)
    path = extract(tmp_path, KEY, np.arange(10), Runner(), silent)
    with pa.memory_map(str(path)) as file:
        assert pa.ipc.open_file(file).num_record_batches == batches
    assert np.array_equal(FeatureCache.open(path, KEY).gather(np.arange(10)[::-1]), value(np.arange(10)[::-1])[:, 0])


def test_missing_rows(tmp_path):
    path = cache_path(tmp_path, KEY)
    assert missing(path, KEY, np.array([3, 1, 3])).tolist() == [1, 3]
    extract(tmp_path, KEY, np.array([1, 2]), Runner(), silent)
    assert missing(path, KEY, np.array([3, 1, 0])).tolist() == [0, 3]
    told = refusal(FeatureCache.open(path, KEY).gather, np.array([0, 1, 9]))
    assert "2 of 3 images (rows 0, 9)" in told
    assert "fedpgp features" in told


def test_a_cache_of_something_else_is_refused_with_both_sides(tmp_path):
    path = extract(tmp_path, KEY, np.arange(2), Runner(), silent)
    told = refusal(FeatureCache.open, path, replace(KEY, weights="v" * 16, views=2))
    assert str(path) in told
    assert f"weights is {'w' * 16}, expected {'v' * 16}" in told
    assert "views is 1, expected 2" in told
    assert "manifest" not in told


def test_torn_foreign_and_absent_files_are_refused(tmp_path):
    path = extract(tmp_path, KEY, np.arange(8), Runner(), silent)
    whole = path.read_bytes()
    foreign = tmp_path / "foreign.arrow"
    with pa.ipc.new_file(str(foreign), pa.schema([("row", pa.int64())])):
        pass
    for content in (whole[:-8], whole[: len(whole) // 2], b"", b"hello", foreign.read_bytes()):
        path.write_bytes(content)
        for attempt in (
            lambda: FeatureCache.open(path, KEY),
            lambda: missing(path, KEY, np.arange(2)),
            lambda: extract(tmp_path, KEY, np.arange(9), Runner(), silent),
        ):
            told = refusal(attempt)
            assert str(path) in told
            assert "damaged or incomplete feature cache" in told
            assert "delete it" in told
    path.unlink()
    assert "no such feature cache" in refusal(FeatureCache.open, path, KEY)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path / "shard.arrow", KEY, np.arange(2), value(np.arange(2)))
    assert list(tmp_path.iterdir()) == []


def test_a_chunk_is_small_to_send(tmp_path):
    chunk = Chunk(np.arange(256), tmp_path / "000000000.arrow")
    again = pickle.loads(pickle.dumps(chunk))
    assert np.array_equal(again.rows, chunk.rows)
    assert again.shard == chunk.shard
    assert len(pickle.dumps(chunk)) < 4000


def metadata(shape):
    return {"key": json.dumps(asdict(KEY)), "shape": json.dumps(shape)}


@pytest.mark.parametrize(
    ("columns", "shape"),
    [
        ({"row": pa.array([0, 1])}, [2]),
        ({"row": pa.array([0.0, 1.0]), "feature": pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2))}, [2]),
        ({"row": pa.array([0, 1]), "feature": pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2))}, [3]),
        ({"row": pa.array([0, 1]), "feature": pa.array([[1, 2], [3, 4]], pa.list_(pa.float64(), 2))}, [2]),
        ({"row": pa.array([0, 1]), "feature": pa.array([[1, 2], [3]], pa.list_(pa.float32()))}, [2]),
        ({"row": pa.array([], pa.int64()), "feature": pa.array([], pa.list_(pa.float32(), 2))}, [2]),
        ({"row": pa.array([0, 1]), "feature": pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2))}, "x"),
    ],
)
def test_a_cache_with_the_right_key_and_other_columns_is_refused(tmp_path, columns, shape):
    table = pa.table(columns).replace_schema_metadata(metadata(shape))
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert "damaged or incomplete feature cache" in refusal(FeatureCache.open, tmp_path / "a.arrow", KEY)


def test_features_that_are_not_finite_are_refused_when_they_are_used(tmp_path):
    feature_cache = np.ones((3, KEY.views, 2), np.float32)
    feature_cache[1] = np.nan
    write_shard(tmp_path / "a.arrow", KEY, np.arange(3), feature_cache)
    cache = FeatureCache.open(tmp_path / "a.arrow", KEY)
    assert np.array_equal(cache.gather(np.array([0, 2])), np.ones((2, 2)))
    assert "not finite" in refusal(cache.gather, np.array([0, 1]))


def test_cut_at_any_byte_a_cache_is_refused(tmp_path):
    path = tmp_path / "a.arrow"
    write_shard(path, KEY, np.arange(3), np.ones((3, KEY.views, 2), np.float32))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert "damaged or incomplete feature cache" in refusal(FeatureCache.open, path, KEY)


def test_another_user_reads_the_cache_without_a_lock(shared_root, as_user):
    folder, nothing = shared_root / "features", Runner()
    with as_user(1501):
        extract(folder, KEY, np.arange(6), Runner(), silent)
    (folder / f"{KEY.digest}.lock").unlink()
    with as_user(1502):
        path = extract(folder, KEY, np.arange(4), nothing, silent)
        assert FeatureCache.open(path, KEY).gather(np.arange(4)).shape == (4, 3)
        with pytest.raises(AccessError, match=r"features may not be written by you \(uid 1502\); its owner"):
            extract(folder, KEY, np.arange(8), nothing, silent)
    assert nothing.seen == []


def test_a_cache_that_may_not_be_read_is_not_called_damaged(shared_root, as_user):
    path = extract(shared_root, KEY, np.arange(6), Runner(), silent)
    path.chmod(0o600)
    with as_user(1502):
        for call in (lambda: missing(path, KEY, np.arange(6)), lambda: FeatureCache.open(path, KEY)):
            with pytest.raises(AccessError, match="arrow may not be read"):
                call()
        assert [str(error)[-20:] for error in feature_cache.scan(shared_root)[1]] == [f"chmod g+r {path}"[-20:]]
    shared_root.chmod(0o700)
    with as_user(1502), pytest.raises(AccessError, match="store may not be read"):
        missing(path, KEY, np.arange(6))


def test_shards_that_may_not_be_read_are_not_deleted(shared_root, as_user):
    with as_user(1501, 0o002), pytest.raises(RuntimeError, match="lost"):
        extract(shared_root, KEY, np.arange(8), Runner(fail_at=1), silent)
    (shard,) = (shared_root / f"{KEY.digest}.shards").iterdir()
    shard.chmod(0o600)
    with as_user(1502, 0o002), pytest.raises(AccessError, match="arrow may not be read"):
        extract(shared_root, KEY, np.arange(8), Runner(), silent)
    assert shard.exists()
