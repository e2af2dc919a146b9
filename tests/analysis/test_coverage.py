"""Means over fewer clients than there are."""

import pyarrow as pa
import pytest

from fedpgp.analysis.comparison import METRIC_TITLES
from fedpgp.analysis.coverage import coverage, lines
from fedpgp.federation.metrics import CLIENT_SCHEMA


def table(*rounds, split="test", metric="local"):
    """Rows with the number of images of each client, by round; None: the client was not tested."""
    rows = [
        {"round": number, "client": client, "split": split, "metric": metric, "correct": 0, "total": total}
        for number, totals in enumerate(rounds, 1)
        for client, total in enumerate(totals)
        if total is not None
    ]
    return pa.Table.from_pylist(rows, CLIENT_SCHEMA)


def text(*runs, **kinds):
    return lines([coverage(table(*rounds, **kinds), len(rounds[0])) for rounds in runs], METRIC_TITLES)


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([([3, 0, 1, 0],)], "mean over 2 of 4 clients (2 have no test image)"),
        ([([3, 0, 1],)], "mean over 2 of 3 clients (1 has no test image)"),
        (
            [([3, 0, 1],), ([3, 1, 1],)],
            "mean over 2 to 3 of 3 clients (some have no test image, not the same for all rounds and runs)",
        ),
        (
            [([3, None, 1], [None, None, 2])],
            "mean over 1 to 2 of 3 clients (those tested in the round that have a test image, "
            "not the same for all rounds and runs)",
        ),
    ],
)
def test_a_mean_over_fewer_clients_is_said(runs, expected):
    assert text(*runs) == {"test/local": f"Local (test): {expected}"}


def test_a_mean_over_all_clients_needs_no_word():
    assert text(([1, 2],), ([2, 1],)) == {}
    assert text() == {}
    assert text(([1, 2],), ([2, 1, 1],)) == {}  # of two and of three clients


def test_the_harmonic_mean_has_the_fewest_clients_of_its_parts():
    parts = [table([3, 0], metric="local"), table([3, 3], metric="base"), table([3, 3], metric="novel")]
    found = lines([coverage(pa.concat_tables(parts), 2)], METRIC_TITLES)
    said = "Local, HM (test): mean over 1 of 2 clients (1 has no test image)"
    assert found == {"test/local": said, "test/hm": said}


def test_validation_images_are_told_from_test_images():
    assert text(([0, 4],), split="val", metric="all") == {
        "val/all": "All (val): mean over 1 of 2 clients (1 has no validation image)"
    }


def test_rows_by_domain_do_not_count_twice():
    rows = table([3, 3])
    domain = rows.set_column(4, "domain", pa.array(["a", "a"]))
    assert lines([coverage(pa.concat_tables([rows, domain]), 2)], METRIC_TITLES) == {}


def test_attackers_and_clients_that_never_train_are_not_in_the_mean():
    """One of 6 clients attacks and two never train; one of the other three and one of the new ones have no image."""
    tested, new = table([3, 0, 1]), table([0, 4], split="new_client")
    found = lines([coverage(pa.concat_tables([tested, new]), 6, attack=1, unseen=2)], METRIC_TITLES)
    assert found == {
        "test/local": "Local (test): mean over 2 of 6 clients (1 attack, 2 never train, 1 has no test image)",
        "new_client/local": "Local (new_client): mean over 1 of 2 clients (1 has no test image)",
    }
