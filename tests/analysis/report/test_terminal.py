"""The tables that commands print."""

import io

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console

from fedpgp.analysis.loading import Entry, compare
from fedpgp.analysis.report import comparison_tables, terminal
from fedpgp.core.errors import RunError
from fedpgp.federation.metrics import CLIENT_SCHEMA, RoundRow, round_metrics
from fedpgp.storage.run_folder import RunFolder

COUNTS = {"local": 80, "base": 40, "novel": 20}  # of 100, HM 34.29


def clients(number, count=2):
    """Each client is 10 points better than the one before, and one point better every round; test is 5 below val."""
    return pa.Table.from_pylist(
        [
            {
                "round": number,
                "client": client,
                "split": split,
                "metric": metric,
                "correct": correct + 10 * client + number - less,
                "total": 100,
            }
            for client in range(count)
            for split, less in (("val", 0), ("test", 5))
            for metric, correct in COUNTS.items()
        ],
        CLIENT_SCHEMA,
    )


def make(root, name, rounds=2, **identity):
    store = RunFolder.create(root, name, "0123", "", {"method": "fedpgp", "data": "shapes", **identity})
    for number in range(1, rounds + 1):
        table = clients(number)
        seconds = {"train": 0.5 * number} | ({"evaluate": 3.0} if number == 2 else {})
        row = RoundRow(number, round_metrics(table), 2, 1_500_000, 3_000_000, seconds, 1)
        store.commit(row, table, {"files": []})
    return store


def rendered(renderable, width=100):
    console = Console(width=width, file=io.StringIO())
    console.print(renderable)
    lines = console.file.getvalue().splitlines()
    return [" ".join(line.replace("│", " ").replace("┃", " ").split()) for line in lines]


def test_one_run_is_shown(tmp_path):
    lines = rendered(terminal.show(make(tmp_path, "demo", client_names=["amazon", "[red]"]).path))
    assert "split metric last mean of last 5 max" in lines
    assert "val Local 87.00 86.50 87.00" in lines
    assert "test Novel 22.00 21.50 22.00" in lines
    assert "max on test selects on the test images" in lines
    assert "demo-0123 running 2 3.0 MB 6.0 MB train 0.75" in lines
    assert "fedpgp on shapes evaluate 3.00" in lines
    assert "Clients after round 2, accuracy in percent" in lines
    assert "client split Local Base Novel HM" in lines
    assert "amazon test 77.00 37.00 17.00 30.35" in lines  # 3 / (1/77 + 1/37 + 1/17)
    assert "[red] val 92.00 52.00 32.00 48.90" in lines


def test_it_fits_a_terminal_of_80_columns(tmp_path):
    lines = rendered(terminal.show(make(tmp_path, "demo").path), width=80)
    assert "val Local 87.00 86.50 87.00" in lines
    assert "demo-0123 running 2 3.0 MB 6.0 MB train 0.75" in lines
    assert not any("…" in line for line in lines)


def test_a_run_without_an_evaluation(tmp_path):
    lines = rendered(terminal.show(make(tmp_path, "demo", rounds=0).path))
    assert "demo-0123 running 0 0 bytes 0 bytes" in lines
    assert "No round has been evaluated yet." in lines


def test_a_failed_run_says_so_and_why(tmp_path):
    store = make(tmp_path, "demo")
    store.fail("disk full")
    lines = rendered(terminal.show(store.path))
    assert "demo-0123 failed 2 3.0 MB 6.0 MB train 0.75" in lines
    assert "disk full" in lines


def test_many_clients_are_cut_and_counted(tmp_path):
    store = make(tmp_path, "demo", rounds=0)
    table = clients(1, count=3).filter(pc.field("metric") == "local")
    many = pa.concat_tables(
        [table.set_column(1, CLIENT_SCHEMA.field(1), pa.array([k] * 6, pa.int32())) for k in range(60)]
    )
    store.commit(RoundRow(1, round_metrics(many), 60, 0, 0), many, {"files": []})
    assert "the first 100 of 120 rows" in rendered(terminal.show(store.path))


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match="not a run folder"):
        terminal.show(tmp_path)


def test_standings_mark_the_best_and_equals(made_run):
    rows = {"[x]": (50.0, 60.04), "b": (52.0, 59.96), "zero": (40.0, None)}
    entries = []
    for label, (hm, novel) in rows.items():
        for seed, change in ((1, -1.0), (2, 1.0)):
            more = {} if novel is None else {"test_novel": [novel]}
            run = made_run(f"seed={seed}", f"name={label.strip('[]')}", test_hm=[hm + change], **more)
            entries.append(Entry(run, label))
    lines = rendered(comparison_tables.standings(compare(entries)))
    assert "[x] - - 60.0 ± 0.0 * 50.0 ± 1.4" in lines
    assert "b - - 60.0 ± 0.0 * 52.0 ± 1.4 *" in lines
    assert "zero - - - 40.0 ± 1.4" in lines
