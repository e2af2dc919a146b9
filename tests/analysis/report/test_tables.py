"""The tables of a comparison in the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from fedpgp.analysis.loading import Entry, compare, read
from fedpgp.analysis.report import comparison_tables, privacy_tables, tables, terminal


@pytest.fixture
def compared(made_run):
    """FedPGP beats PromptFL on HM by 1, 2 and 3 points on seeds 1, 2, 3; only FedPGP measured Novel."""
    entries = []
    for seed in (1, 2, 3):
        entries.append(Entry(made_run("method.name=promptfl", f"seed={seed}", test_hm=[50, 60 + seed], val_hm=[1, 2])))
        entries.append(Entry(made_run(f"seed={seed}", test_hm=[70, 60 + 2 * seed], test_novel=[40, 41], val_hm=[3, 4])))
    entries.append(Entry(made_run("method.name=coop", test_hm=[64, 64], val_hm=[5, 6])))
    return compare(entries, selected=["val/hm"])


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def test_accuracies_mark_best_and_second_best(compared):
    table = comparison_tables.accuracies(compared, "")
    assert table.headings == ("", "seeds", "Novel", "HM")
    assert texts(table) == [
        ["promptfl", "3", "-", "62.00 ± 1.00"],
        ["fedpgp", "3", "41.00 ± 0.00", "64.00 ± 2.00"],
        ["coop", "1", "-", "64.00"],
    ]
    assert [row[3].rank for row in table.rows] == [2, 1, 1]  # two are best together, then comes the second best


def test_the_other_readings_are_other_numbers(compared):
    assert tables.statistic_text(compared.groups[1].statistic("hm", "test", "max")) == "70.00 ± 0.00"
    assert texts(comparison_tables.readings(compared.groups))[2:4] == [
        ["fedpgp", "val", "4.00 ± 0.00", "3.50 ± 0.00", "4.00 ± 0.00"],
        ["fedpgp", "test", "64.00 ± 2.00", "67.00 ± 1.00", "70.00 ± 0.00"],  # (70 + 62, 64, 66) / 2
    ]


def test_differences_are_paired_by_seed_and_have_an_interval(compared):
    table = comparison_tables.differences(compared, "", "promptfl")
    assert texts(table) == [
        ["fedpgp", "3", "-", "+2.00\n[-0.5, +4.5]"],  # 2 ± 4.302653 / sqrt(3)
        ["coop", "1", "-", "+3.00"],  # one seed: 64 - 61
    ]
    assert texts(comparison_tables.differences(compared, "", "coop"))[0] == ["promptfl", "1", "-", "-3.00"]


def test_costs_are_those_of_one_run(compared):
    assert texts(comparison_tables.costs(compared.groups))[0] == ["promptfl", "2", "2.0 MB", "4.0 MB", "0.50"]


def test_what_runs_have_spent(made_run, compared):
    """Of a group the most; without privacy there is no table."""
    assert texts(privacy_tables.of_groups(compared.groups)) == []
    titles = [table.title for table in comparison_tables.all_tables(compared, "promptfl")]
    assert "Differential privacy" not in titles
    private = {"test_hm": [1], "privacy_delta": [0.01], "privacy_clip_norm": [0.5]}
    of = {"privacy": {"noise_multiplier": 1.25, "neighbours": "one client replaced"}}
    paths = [made_run(f"seed={seed}", name="dp", more=of, privacy_epsilon=[2.5 * seed], **private) for seed in (1, 2)]
    clipped = made_run("method.name=coop", test_hm=[1], privacy_clip_norm=[1.0])
    mixed = compare([Entry(path) for path in (*paths, clipped, made_run("method.name=promptfl", test_hm=[1]))])
    of_dp = ["0.01", "0.5", "1.25", "one client replaced"]
    rows = [["fedpgp", "5", *of_dp], ["coop", "-", "-", "1", "-", "-"]]
    assert texts(privacy_tables.of_groups(mixed.groups)) == rows
    first, second = (read(path) for path in (paths[0], clipped))
    assert texts(privacy_tables.of_pair(first, second)) == [["A", "2.5", *of_dp], ["B", *rows[1][1:]]]
    for shown in (comparison_tables.side_by_side(first, second), terminal.show(paths[1])):
        console = Console(width=120, file=io.StringIO())
        console.print(shown)
        assert "epsilon spent" in console.file.getvalue()
        assert "one client replaced" in console.file.getvalue()


def test_remarks_name_what_is_missing_and_what_selected(compared, made_run):
    assert comparison_tables.remarks(compared) == [
        "missing: coop: no run of seed 2",
        "missing: coop: no run of seed 3",
        "settings were selected by hm on validation images (val/hm)",
    ]
    paths = [made_run("name=a", test_hm=[1]), made_run("name=b", "method.name=coop", "protocol.shots=2", test_hm=[1])]
    mixed = compare([Entry(path, strict=True) for path in paths], allow_mismatch=True, selected=["test/hm"])
    marked, selected = comparison_tables.remarks(mixed)
    assert marked == "† another partition than fedpgp, shots=16"
    assert "on the TEST images: these numbers are optimistic" in selected
    assert texts(comparison_tables.accuracies(mixed, ""))[1][0] == "coop, shots=2 †"


def test_in_a_terminal_of_80_columns_nothing_is_cut(compared):
    console = Console(width=80, file=io.StringIO())
    console.print(tables.in_terminal(comparison_tables.all_tables(compared, "promptfl"), ["[red] is no colour"]))
    shown = console.file.getvalue()
    assert "…" not in shown
    assert "[-0.5, +4.5]" in shown
    assert "[red] is no colour" in shown


def test_the_title_of_a_narrow_table_stays_in_one_line():
    console = Console(width=80, file=io.StringIO())
    narrow = tables.Table("A title that is longer than its table", ("", "x"), ((tables.Cell("a"), tables.Cell("1")),))
    console.print(tables.in_terminal([narrow], []))
    assert console.file.getvalue().startswith("A title that is longer than its table\n")


def test_markdown_keeps_indentation():
    table = tables.Table(
        "t", ("", "x"), ((tables.Cell("a"), tables.Cell("1")), (tables.Cell("  below"), tables.Cell("2")))
    )
    assert "| a | 1 |\n| &emsp;below | 2 |\n" in tables.as_markdown([table], [])


def test_markdown_is_a_table_that_shows_the_best(compared):
    text = tables.as_markdown([comparison_tables.accuracies(compared, "")], ["a | b <c>"])
    lines = text.splitlines()
    assert "|  | seeds | Novel | HM |" in lines
    assert "|---|---:|---:|---:|" in lines
    assert "| promptfl | 3 | - | <u>62.00 ± 1.00</u> |" in lines
    assert "| fedpgp | 3 | **41.00 ± 0.00** | **64.00 ± 2.00** |" in lines
    assert r"* a \| b \<c\>" in lines


def test_csv_has_the_numbers_in_full(compared):
    rows = list(csv.DictReader(io.StringIO(comparison_tables.as_csv(compared, "promptfl"))))
    (row,) = [
        row
        for row in rows
        if (row["group"], row["split"], row["metric"], row["reading"]) == ("fedpgp", "test", "hm", "last")
    ]
    assert (row["mean"], row["std"], row["seeds"], row["values"]) == ("64.0", "2.0", "1 2 3", "62.0 64.0 66.0")
    assert float(row["difference"]) == 2.0
    assert float(row["low"]) == pytest.approx(-0.484138, abs=1e-6)
    assert {row["reading"] for row in rows} == {"last", "mean_last_5", "max"}


def test_a_terminal_of_80_columns_cuts_nothing_off():
    """Five text columns of 40 letters each: every letter is printed."""
    letters = "abcde"
    console = Console(file=io.StringIO(), width=80)
    console.print(tables.Table("", ("", "", "", "", ""), [[letter * 40 for letter in letters]], text_columns=5))
    shown = console.file.getvalue()
    assert [shown.count(letter) for letter in letters] == [40] * 5


def test_ranks_use_rounded_values():
    assert tables.ranks([70.001, None, 70.004, 65.0, 69.99]) == [1, None, 1, 3, 2]
    assert tables.ranks([70.04, 69.96, 69.94], digits=1) == [1, 1, 2]
    assert tables.ranks([None]) == [None]


def test_clients_are_ordered_by_the_largest_change(made_run, counts):
    first = read(made_run(test_local=[70], clients=counts(local=[6, 8])))
    second = read(made_run("method.name=coop", test_local=[75], clients=counts(local=[7, 4])))
    table = comparison_tables.pair_clients(first, second)
    assert table.headings == ("client", "Local, A", "Local, B", "Local, B - A")
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["ben", "80.00", "40.00", "-40.00"],
        ["anna", "60.00", "70.00", "+10.00"],
    ]
    assert table.caption == "Local: 1 clients gain, 1 lose, 0 stay; largest change first"
    Console(quiet=True).print(comparison_tables.side_by_side(first, second))


def test_new_clients_have_a_table_with_the_participation_gap(made_run):
    """Local of the global model, 65 and 55, against 50 and 46 of new clients: gaps of 15 and 9, so 12 ± 4.24.

    The personal models (70, 60) have no part in it, and without `local_global` there is no gap.
    """
    entries = [Entry(made_run("method.name=promptfl", test_local=[50]))]
    for seed, local, new in ((1, 70, 50), (2, 60, 46)):
        series = {"new_client/local": [new], "new_client/local_adapted": [local], "test/local_global": [local - 5]}
        entries.append(Entry(made_run(f"seed={seed}", test_local=[local], **series)))
    table = comparison_tables.new_clients(compare(entries).groups)
    assert table.headings == ("", "Local", "Local, adapted", "participation gap")
    assert texts(table) == [["fedpgp", "48.00 ± 2.83", "65.00 ± 7.07", "12.00 ± 4.24"]]
    personal = [Entry(made_run("seed=3", test_local=[70], **{"new_client/local": [50]}))]
    assert texts(comparison_tables.new_clients(compare(personal).groups)) == [["fedpgp", "50.00", "-"]]
