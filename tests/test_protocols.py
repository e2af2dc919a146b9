"""Protocols in whole runs: metrics and files."""

from __future__ import annotations

import threading

import pyarrow.csv
import pytest

from fedpgp import config
from fedpgp.analysis.report.run_figures import partition_of_run
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import DataError
from fedpgp.experiments import planning, runner
from fedpgp.federation.measures import split_name
from fedpgp.storage.run_folder import RunFolder

TREE = {
    "data": {"name": "shapes"},
    "backbone": {"name": "tiny", "weights": "random"},
    "protocol": {"name": "leave_one_domain_out", "held_out": "dotted", "shots": 1},
    "partition": {"scheme": "domain", "clients": None},
    "method": {"name": "fedpgp", "n_ctx": 2, "rank": 2},
    "federation": {"rounds": 1, "local_epochs": 1},
    "resources": {"backend": "serial"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


def run(root, **changes):
    tree = {**TREE, "storage": {"root": str(root)}, **changes}
    return runner.run(config.parse(tree), False, RunCallback(), threading.Event())


def test_leave_one_domain_out_writes_rows_and_a_partition(root):
    folder = run(root)
    store = RunFolder.open(folder)
    metrics = store.rounds()[-1].metrics
    held_out = {"test/held_out", "test/held_out_global"}
    trained = {"train/loss", "train/ce", "train/con"}
    accuracies = {name for name in metrics if split_name(name.partition("/")[2])[1:] == (None, None)}
    assert accuracies == {"val/local", "val/all", "test/local", "test/all"} | trained | held_out
    rows = [row for row in store.clients().to_pylist() if row["metric"] == "held_out"]
    assert {(row["client"], row["total"]) for row in rows if row["domain"] is None} == {(0, 1200), (1, 1200)}
    assert {row["domain"] for row in rows if row["total"] and row["domain"]} == {"dotted"}
    assert store.identity["client_names"] == ["filled", "outline"]
    table = pyarrow.csv.read_csv(folder / "partition.csv")
    assert sum(row["images"] for row in table.to_pylist() if row["split"] == "train") == 2 * 30
    assert "dotted" not in table["domain"].to_pylist()
    assert partition_of_run(folder).axes


def test_methods_are_compared_on_the_same_partition(root):
    digests = set()
    for name in ("fedpgp", "promptfl", "zero_shot"):
        tree = {**TREE, "method": {"name": name}, "storage": {"root": str(root)}}
        digests.add(planning.plan(config.parse(tree)).data.digest)
    assert len(digests) == 1


def test_a_single_run_cannot_hold_out_all_domains(root):
    everything = {**TREE["protocol"], "held_out": "all"}
    with pytest.raises(DataError, match=r"held_out: all means 3 experiments"):
        run(root, protocol=everything)
