"""Pickles as data: what is built, and that nothing is ever run."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpgp.core.errors import DataError
from fedpgp.data.sources import pickles

DATA: list[Any] = [
    {"data": np.arange(12, dtype=np.uint8).reshape(3, 4), "labels": [1, 2, 3], "name": "cat", "pi": 3.5, "none": None},
    (np.array(["a/b.jpg", "c"], dtype=object), np.array(["dog", "cats"])),
    [True, False, -1, 2**70, b"\xff\x00", ("x", ("y", "z")), {}, []],
    np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    np.arange(3, dtype=">i4"),
    [np.float32(1.5), np.int64(-7)],
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", DATA, ids=range(len(DATA)))
def test_data_of_every_protocol_equals_what_pickle_reads(value: Any, protocol: int) -> None:
    content = pickle.dumps(value, protocol)
    np.testing.assert_equal(pickles.loads(content), pickle.loads(content))


def test_shared_parts_stay_shared() -> None:
    """A list of lists of lists ... would otherwise grow without bounds."""
    value: list[Any] = ["x"]
    for _ in range(100):
        value = [value, value]
    read = pickles.loads(pickle.dumps(value))
    assert read[0] is read[1]


def test_python_2_strings_are_read_as_latin_1() -> None:
    """As in CIFAR's own batches: SHORT_BINSTRING keys, the pixels as the BINSTRING of an array."""
    pixels = bytes(range(250, 256))
    python2 = (
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x06" + pixels + b"tbs."
    )
    assert pickles.loads(python2)["data"].tolist() == [[250, 251, 252], [253, 254, 255]]


class Code:
    """What an attacker would pickle."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", [os.system, eval, open, getattr, np.load, np.fromfile, pickle.loads])
def test_code_is_named_and_not_run(function: Any, protocol: int, tmp_path: Path) -> None:
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"data": [Code(function, f"touch {tmp_path}/ran")]}, protocol))
    with pytest.raises(DataError, match=r"bad.pkl: rejected: it refers to \w+[.]\S*, .* nothing was executed"):
        pickles.read(tmp_path / "bad.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cposix\nsystem\n(S'touch ran'\ntR.",
        b"(S'touch ran'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch ran'\no.",
        b"\x80\x02cnumpy\nndarray\n(tR.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.",
        b"\x80\x02]\x94}b.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02]q\x00h\x00a.",
        b"S'persistent'\nQ.",
        b"\x80\x02}(K\x01\x85K\x02u.",  # a tuple as a key
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
    ],
)
def test_hand_made_pickles_are_refused(content: bytes) -> None:
    with pytest.raises(pickles.Refused):
        pickles.loads(content)


ARRAY = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R(K\x01%bcnumpy\ndtype\nU\x02%b\x85R\x89%btb."
"""A pickled array: its shape, its dtype and its content."""


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.",  # a bytearray, bytes, text, integer and frame of a terabyte
        b"\x80\x04\x8e\x00\x00\x00\x00\x00\x01\x00\x00.",
        b"\x80\x04\x8d\x00\x00\x00\x00\x00\x01\x00\x00.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x04\x95\x00\x00\x00\x00\x00\x01\x00\x00.",
        ARRAY % (b"J\x00\x00\x00\x40J\x00\x00\x00\x40\x86", b"u1", b"U\x02ab"),
        ARRAY % (b"J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86", b"u1", b"U\x02ab"),  # (-1, -2)
        ARRAY % (b"J\x00\x00\x00\x40\x85", b"O8", b"]"),
        ARRAY % (b"J\x00\x00\x00\x40\x85", b"S0", b"U\x00"),
        b"\x80\x02U\xff" + b"x" * 255 + b"q\x000]" + b"c_codecs\nencode\nh\x00U\x06latin1\x86Ra" * 100_000 + b".",
        b"\x80\x02K\x01q\x000" + b"h\x00h\x00\x86q\x000" * 64 + b"}h\x00K\x01s.",  # a key that takes 2^64 steps to hash
    ],
    ids=range(11),
)
def test_bombs_are_refused_before_they_take_memory_or_time(content: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, EOFError, IndexError)):  # `Refused` is a ValueError
            pickles.loads(content)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_a_huge_memo_index_takes_no_memory() -> None:
    tracemalloc.start()
    assert pickles.loads(b"\x80\x04]r\xff\xff\xff\x7f.") == []
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_an_array_must_fit_its_bytes(tmp_path: Path) -> None:
    content = pickle.dumps(np.arange(6, dtype=np.uint8).reshape(2, 3), 2)
    (tmp_path / "a.pkl").write_bytes(content.replace(b"K\x02K\x03\x86", b"K\xffK\xff\x86"))
    with pytest.raises(DataError, match=r"a.pkl: not a complete pickle .*; fetch it again"):
        pickles.read(tmp_path / "a.pkl")


def test_torn_missing_and_huge_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickle.dumps(DATA[0])
    for length in (0, 1, len(content) // 2, len(content) - 1):
        (tmp_path / "torn.pkl").write_bytes(content[:length])
        with pytest.raises(DataError, match="not a complete pickle"):
            pickles.read(tmp_path / "torn.pkl")
    with pytest.raises(DataError, match=r"gone.pkl: cannot be read \(No such file"):
        pickles.read(tmp_path / "gone.pkl")
    monkeypatch.setattr(pickles, "MAX_BYTES", 10)
    (tmp_path / "torn.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"more than 10; not a list or a batch"):
        pickles.read(tmp_path / "torn.pkl")
