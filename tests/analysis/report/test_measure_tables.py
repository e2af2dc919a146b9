"""Tables of measures: the best of a column, where smaller may be better; domains; absent without measures."""

from __future__ import annotations

import pytest

from fedpgp.analysis.loading import Entry, compare
from fedpgp.analysis.report import comparison_tables, measure_tables


@pytest.fixture
def compared(made_run):
    first = {"test/local": [60], "test/local_ece": [5], "test/local_worst": [30], "test/local.a": [70]}
    second = {"test/local": [61], "test/local_ece": [4], "test/local_worst": [20], "test/local.a": [65]}
    return compare(
        [Entry(made_run(name="x", **first)), Entry(made_run("method.name=coop", **second, **{"test/local.b": [50]}))]
    )


def cells(table):
    return [[(cell.text, cell.rank) if cell.rank else cell.text for cell in row] for row in table.rows]


def test_the_smallest_calibration_error_is_the_best(compared):
    table = measure_tables.of_groups(compared.groups)
    assert cells(table) == [
        ["Local", "fedpgp", ("5.00", 2), "-", "-", ("30.00", 1), "-"],
        ["Local", "coop", ("4.00", 1), "-", "-", ("20.00", 2), "-"],
    ]


def test_domains_are_columns(compared):
    table = measure_tables.domains_of_groups(compared.groups)
    assert table.headings == ("metric", "", "a", "b")
    assert cells(table) == [
        ["Local", "fedpgp", ("70.00", 1), "-"],
        ["Local", "coop", ("65.00", 2), ("50.00", 1)],
    ]


def test_csv_and_the_table_of_accuracies(compared):
    lines = comparison_tables.as_csv(compared, "fedpgp").splitlines()
    assert [line.split(",")[3] for line in lines if ",last," in line and ",coop," in line] == [
        "local", "local_ece", "local_worst", "local.a", "local.b",
    ]  # fmt: skip
    assert comparison_tables.accuracies(compared, "").headings == ("", "seeds", "Local")


def test_without_measures_there_are_no_tables(made_run):
    compared = compare([Entry(made_run(test_local=[50]))])
    assert [build(compared.groups).rows for build in measure_tables.BUILDERS] == [(), ()]
    assert not any("ECE" in table.headings for table in comparison_tables.all_tables(compared, "fedpgp"))
    assert measure_tables.of_run({"test/local": {"last": 50.0}}).rows == ()


def test_one_run():
    found = {"val/base_f1": {"last": 40.0}, "test/local_ece": {"last": 3.0}}
    assert cells(measure_tables.of_run(found)) == [
        ["val", "Base", "-", "40.00", "-", "-", "-"],
        ["test", "Local", "3.00", "-", "-", "-", "-"],
    ]
