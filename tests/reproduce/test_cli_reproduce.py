"""`fedpgp reproduce` as a person uses it: smokes of all tables, files, refusals."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from fedpgp.cli import main
from fedpgp.reproduce.tables import TABLES


@pytest.fixture
def fedpgp(monkeypatch, capsys, tmp_path):
    """Run the command in this process, in a folder of its own; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedpgp", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            sys.exit(main())
        captured = capsys.readouterr()
        return exited.value.code or 0, captured.out, captured.err

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table3"], ["table3: no such table", "table11"]),
        (["table1", "--data", "cifar10"], ["--data cifar10: not in table1"]),
        (["table1", "--root", "nowhere"], ["nowhere/oxford_pets: no such folder; --root", "nowhere/food101"]),
        (["table4", "--smoke", "--backbone", "ViT-B-61"], ["no model 'ViT-B-61'", "did you mean"]),
        (["table4", "--smoke", "--backbone", "gone.pt"], ["gone.pt"]),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(fedpgp, arguments, words):
    code, out, err = fedpgp("reproduce", *arguments)
    assert (code, out) == (2, "")
    for word in words:
        assert word in err
    assert list(Path().rglob("*.json")) == []


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
def test_the_smoke_of_every_table_ends_with_all_its_cells(fedpgp, table):
    code, out, err = fedpgp("reproduce", table, "--smoke", "--out", "here", "tracking.mlflow=false")
    assert code == 0, err
    assert f"{table}: {TABLES[table].title}" in out
    rows = list(csv.DictReader(Path(f"here/{table}.csv").read_text(encoding="utf-8").splitlines()))
    assert rows
    assert [row for row in rows if not row["mean"]] == []
    assert {row["seeds"] for row in rows} == {"1"}
    assert all("data" in row["differs"] and "settings" in row["differs"] for row in rows)
    again = fedpgp("reproduce", table, "--smoke", "tracking.mlflow=false")
    assert (again[0], "finished before" in again[2]) == (0, True)  # nothing is run twice


@pytest.mark.slow
def test_the_script_is_the_command(tmp_path):
    script = Path(__file__).parents[2] / "pipelines" / "reproduce.py"
    command = [sys.executable, str(script), "table7", "--smoke", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, "FedPGP w/o Negative" in done.stdout) == (0, True)
