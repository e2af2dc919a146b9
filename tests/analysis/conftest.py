"""Client rows with known counts."""

from __future__ import annotations

import pyarrow as pa
import pytest

from fedpgp.federation.metrics import CLIENT_SCHEMA


@pytest.fixture
def counts():
    """Client rows of round 1: of 10 images each, by metric for clients 0 and 1; None: has no such images."""

    def make(**correct):
        return pa.Table.from_pylist(
            [
                {"round": 1, "client": client, "split": "test", "metric": metric, "correct": right, "total": 10}
                for metric, both in correct.items()
                for client, right in enumerate(both)
                if right is not None
            ],
            CLIENT_SCHEMA,
        )

    return make
