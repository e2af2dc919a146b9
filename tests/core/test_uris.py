"""URIs of object stores: joined and taken apart with their query, and the names of their local folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpgp.core import uris


@pytest.mark.parametrize(
    ("place", "expected"),
    [("s3://bucket", True), ("file:///a", True), ("a/b", False), ("s3:/bucket", False), (Path("s3://bucket"), False)],
)
def test_uris_are_told_from_paths(place, expected):
    assert uris.is_uri(place) == expected


def test_folders_around_and_below_keep_the_query():
    run = "s3://me:secret@bucket/store/runs/demo-0123?region=x"
    assert uris.above(run, 2) == "s3://me:secret@bucket/store?region=x"
    assert uris.below("s3://me:secret@bucket/store/?region=x", "runs", "demo-0123") == run
    assert uris.above("file:///a/b/sweeps/c/", 2) == "file:///a/b"


def test_the_name_of_the_local_folder_has_no_password():
    name = uris.cache_name("s3://me:secret@bucket/runs?region=x")
    assert name.startswith("bucket-runs-")
    assert len(name) == len("bucket-runs-") + 8
    assert name != uris.cache_name("s3://me:secret@bucket/runs?region=y")
