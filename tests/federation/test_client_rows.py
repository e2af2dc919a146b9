"""Rows of clients in a file are those in memory, and take no space before they are written."""

import os

import numpy as np
import pytest
import torch

from fedpgp.core import memory
from fedpgp.core.errors import RunError
from fedpgp.federation import client_rows
from fedpgp.federation.client_rows import IN_MEMORY, FirstRows, InMemory, OnDisk, Place

COMMON = {"u": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7), "flag": torch.tensor([True])}


def odd(client, tree):
    """Odd clients start from twice the others' `u`."""
    return {"u": tree["u"] * (1 + client % 2)}


def size_of(rows):
    """Bytes that the file takes on disk."""
    return os.fstat(rows._file.fileno()).st_blocks * 512


def drawn(generator, count):
    return {
        "u": generator.standard_normal((count, 2, 3)).astype(np.float32),
        "steps": generator.integers(99, size=count),
        "flag": generator.random((count, 1)) < 0.5,
    }


@pytest.mark.parametrize("personal_of", [None, odd])
def test_a_file_has_the_rows_of_memory_after_any_writes(tmp_path, monkeypatch, personal_of):
    monkeypatch.setattr(client_rows, "CHUNK_BYTES", 4096)  # so that the file grows several times
    first, clients, generator = FirstRows(COMMON, personal_of), 500, np.random.default_rng(1)
    (here,), (there,) = IN_MEMORY.hold(clients, first), Place(0, tmp_path).hold(clients, first)
    assert isinstance(here, InMemory)
    assert isinstance(there, OnDisk)
    changed = np.zeros(clients, int)
    for round in range(1, 20):
        some = np.sort(generator.choice(clients, generator.integers(1, 60), replace=False))
        tree = drawn(generator, len(some))
        if round % 3 == 0:
            del tree["flag"]
        for rows in (here, there):
            rows.write(round, some, tree)
        changed[some] = round
        asked = np.sort(generator.choice(clients, 50, replace=False))
        own, other = here.of(asked), there.of(asked)
        assert own.keys() == other.keys()
        assert all(own[key].dtype == other[key].dtype and np.array_equal(own[key], other[key]) for key in own)
    assert all(torch.equal(here[key], there[key]) and here[key].dtype == there[key].dtype for key in COMMON)
    assert list(there.changed_after(17)) == list(np.flatnonzero(changed > 17))
    assert here.num_bytes == there.num_bytes == clients * (6 * 4 + 8 + 1)


def test_clients_that_were_never_written_take_no_space(tmp_path):
    """A million rows of 16 KiB; one chunk for a few of them."""
    (rows,) = Place(2**30, tmp_path).hold(10**6, FirstRows({"v": torch.full((4096,), 0.5)}))
    assert rows.num_bytes == 10**6 * 2**14
    assert size_of(rows) == 0
    assert rows.of(np.array([0, 999_999]))["v"].tolist() == [[0.5] * 4096] * 2
    assert size_of(rows) == 0
    rows.write(1, np.array([3, 999_998]), {"v": np.ones((2, 4096), np.float32)})
    assert size_of(rows) <= client_rows.CHUNK_BYTES + 2**16
    assert rows.of(np.array([3, 4]))["v"][:, 0].tolist() == [1.0, 0.5]
    assert list(tmp_path.iterdir()) == []  # the file has no name, so a killed process leaves nothing


def test_all_rows_are_refused_where_they_would_not_fit(tmp_path, monkeypatch):
    (rows,) = Place(0, tmp_path).hold(10**6, FirstRows({"v": torch.zeros(4096)}))
    monkeypatch.setattr(memory, "free", lambda: 2**30)
    with pytest.raises(RunError, match=r"of all 1000000 clients take 15\.3 GiB of memory and 1\.0 GiB are free"):
        rows["v"]


def test_rows_stay_in_memory_up_to_the_limit(tmp_path):
    first, nothing = FirstRows(COMMON), FirstRows({})
    size = 10 * (6 * 4 + 8 + 1)
    assert [type(rows) for rows in Place(2 * size, tmp_path).hold(10, first, first)] == [InMemory, InMemory]
    assert [type(rows) for rows in Place(2 * size - 1, tmp_path).hold(10, first, first)] == [OnDisk, OnDisk]
    assert [type(rows) for rows in Place(0, tmp_path).hold(10, first, nothing)] == [OnDisk, InMemory]
    assert [type(rows) for rows in Place(0, tmp_path).hold(10, nothing, nothing)] == [InMemory, InMemory]
