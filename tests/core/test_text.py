"""Text that messages share."""

from __future__ import annotations

import pytest

from fedpgp.core.text import cause_line, did_you_mean, disk_size, distinct, first_of, memory_size, one_line


def test_similar_names_are_suggested():
    known = ("rounds", "local_epochs", "lr")
    assert did_you_mean("round", known) == "did you mean rounds?"
    assert did_you_mean("xyz", known, "see `fedpgp methods`") == "see `fedpgp methods`"
    assert did_you_mean("fedpg", ("fedtpg", "fedpgp")) == did_you_mean("fedpg", ("fedpgp", "fedtpg"))
    assert did_you_mean("fedpg", ("fedtpg", "fedpgp")) == "did you mean fedpgp?"
    assert did_you_mean("train", ("train1", "train2", "train3"), count=2) == "did you mean train3 or train2?"
    assert did_you_mean(7, known) == ""


def test_long_lists_are_cut():
    assert first_of(["a", "b"], 2) == "a, b"
    assert first_of([1, 2, 3, 4], 2) == "1, 2 and 2 more"
    assert first_of([]) == ""


def test_errors_have_one_line():
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(EOFError()) == "EOFError"


def test_disks_count_in_thousands_and_memory_in_1024s():
    assert [disk_size(size) for size in (0, 999, 1000, 585_400_000, 20_300_000_000, 5e15)] == [
        "0 bytes", "999 bytes", "1.0 kB", "585.4 MB", "20.3 GB", "5,000.0 TB",
    ]  # fmt: skip
    assert [memory_size(size) for size in (10, 2**20, 3 * 2**29)] == ["10 bytes", "1.0 MiB", "1.5 GiB"]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.12341, 0.12349, 0.12341], ["0.12341", "0.12349", "0.12341"]),
        ([0.9995], ["0.9995"]),
        ([0.999912345], ["0.9999"]),
        ([0.123456789, 0.5], ["0.123", "0.5"]),
        ([0.123456781, 0.123456789, 1e30, 1e-5], ["0.12345678", "0.12345679", "1e+30", "1e-05"]),
        ([1234567.0, 1234568.0, 12345.678901], ["1234567", "1234568", "12345.68"]),
        ([1.0, 1.0 + 2**-52], ["1", "1.0000000000000002"]),
        ([float("nan"), float("nan")], ["nan", "nan"]),
        ([1, "1", True, None, "word"], ["1", '"1"', "True", "null", "word"]),
        ([{"name": "dtd", "root": "/a"}, {"name": "dtd", "root": "/b"}], ["dtd, root=/a", "dtd, root=/b"]),
        ([{"name": "dtd", "root": "/a"}, {"name": "icons"}, {"x": 1}], ["dtd", "icons", '{"x": 1}']),
        ([{"name": "a", "mu": 0.12341111}, {"name": "a", "mu": 0.12341112}], ["a, mu=0.12341111", "a, mu=0.12341112"]),
        ([None, {"kind": "flip", "scale": 4}, {"level": "none"}], ["null", "flip", "none"]),
        (
            [[{"name": "folder", "title": "A"}, {"name": "dtd", "title": None}], [{"name": "icons"}]],
            ["[A; dtd]", "[icons]"],
        ),
        (
            [{"name": "u", "parts": [{"name": "a"}]}, {"name": "u", "parts": [{"name": "b"}]}],
            ["u, parts=[a]", "u, parts=[b]"],
        ),
        ([[{"name": "a", "root": "/x"}], [{"name": "a", "root": "/y"}]], ["[a, root=/x]", "[a, root=/y]"]),
        ([], []),
    ],
)
def test_texts_tell_values_apart_with_few_digits(values, texts):
    assert distinct(values) == texts


def caused(text, cause):
    error = ValueError(text)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(raised by a flush; use a block)\n(OSError) a readonly file\n[SQL: x]", "(OSError) a readonly file"),
        ("the store failed\nsee its log", "the store failed: a readonly file"),
        ("Max retries (Caused by: a readonly file)\nmore", "Max retries (Caused by: a readonly file)"),
    ],
)  # fmt: skip
def test_the_line_of_a_message_that_names_the_cause(text, expected):
    assert cause_line(caused(text, OSError("a readonly file"))) == expected
    assert cause_line(caused(text, caused("in between", OSError("a readonly file")))) == expected


@pytest.mark.parametrize(
    ("error", "expected"), [(ValueError("\n  no such run\nmore"), "no such run"), (ValueError(""), "ValueError")]
)
def test_a_message_without_a_cause_is_its_first_line(error, expected):
    assert cause_line(error) == expected
