"""Our numbers in the cells of a table: the right runs, means over data sets and domains, marks, and what is missing."""

from __future__ import annotations

import csv
import io

import pyarrow as pa
import pytest

from fedpgp.analysis.reproduce import cells, planning
from fedpgp.analysis.reproduce.published import Key
from fedpgp.analysis.reproduce.tables import NINE, TABLES
from fedpgp.experiments.sweeps import sampling
from fedpgp.federation.metrics import CLIENT_SCHEMA
from fedpgp.storage.sweep_folder import Fold, FoldRun, Result, SweepFolder, TrialSpec


@pytest.fixture
def swept(tmp_path, made_run):
    """Write the runs of a part of a table as if it had been swept.

    `metrics(trial, fold)` gives those of a run after its only round; None: the run is missing.
    """

    def make(part, metrics, domains=None, clients=None):
        root = tmp_path / "store"
        trials = part.drawn.trials
        folds = {trial.id: sampling.folds(part.sweep, trial, domains) for trial in trials}
        planned = [TrialSpec(trial.id, trial.label, trial.settings, folds[trial.id]) for trial in trials]
        folder = SweepFolder.create(root, part.sweep.name, "0" * 12, "", part.drawn.objectives, planned)
        for number, trial in enumerate(trials):
            runs = []
            for fold in folds[trial.id]:
                found = metrics(trial, fold)
                if found is not None:
                    run = made_run(*_overrides(trial, fold), root=root, name=f"t{number}", clients=clients, **found)
                    runs.append(FoldRun(fold.seed, fold.held_out, run.name))
            if runs:
                state = "finished" if len(runs) == len(folds[trial.id]) else "failed"
                reason = None if state == "finished" else "disk full"
                folder.record(Result(trial.id, state, 1.0, tuple(runs), reason))
        return folder

    return make


def _overrides(trial, fold: Fold):
    """Settings that define the cell; all others are those of a small experiment."""
    one = trial.experiment
    given = [f"method.name={one.method.name}", f"seed={fold.seed}", f"protocol.shots={one.protocol.shots or 1}"]
    if "rank" in one.method.settings:
        given.append(f"method.rank={one.method.settings['rank']}")
    if fold.held_out:
        given += ["protocol.name=leave_one_domain_out", f"protocol.held_out={fold.held_out}",
                  "partition.scheme=domain", "partition.clients=null"]  # fmt: skip
    return given


@pytest.fixture
def root(tmp_path):
    for name in (*NINE, "imagenet", "eurosat", "cifar10", "cifar100", "office_caltech10", "domainnet10"):
        (tmp_path / "data" / name).mkdir(parents=True)
    return tmp_path / "data"


def only(plan):
    (part,) = plan.parts
    return part


def test_table_1_has_the_means_over_its_data_sets_and_their_harmonic_mean(root, swept):
    plan = planning.plan("table1", root=root)
    place = {name: number for number, name in enumerate(plan.asked)}

    def metrics(trial, fold):
        value = 10 * place[trial.experiment.data.name] + fold.seed  # 1, 11, ..., 41 with seed 1
        return {"test_local": [value + 20], "test_base": [value + 10], "test_novel": [value], "test_hm": [value + 1]}

    found = cells.fill(plan, [swept(only(plan), metrics)])
    ours = found.cells[Key("dtd", "FedPGP", "novel")].measured
    assert (ours.by_seed, ours.std) == ({1: 21, 2: 22, 3: 23}, 1.0)
    means = found.cells[Key("average", "FedPGP", "local")]
    assert means.measured.by_seed == {1: 41, 2: 42, 3: 43}  # (21 + 31 + 41 + 51 + 61) / 5
    assert means.difference == pytest.approx(42 - 95.67)
    seed_1 = found.cells[Key("average", "FedPGP", "hm")].measured.by_seed[1]
    assert seed_1 == pytest.approx(3 / (1 / 41 + 1 / 31 + 1 / 21))  # and not the mean of the five, 22
    assert list(found.blocks) == ["average", *plan.asked]
    assert list(found.blocks["dtd"]) == [
        "CLIP", "CoOp", "PromptFL", "Prompt+Prox", "FedMaPLe", "FedCoCoOp", "FedOTP", "FedPGP"
    ]  # fmt: skip
    assert {cell.marks for cell in found.cells.values()} == {()}
    assert found.missing == ()


def test_missing_runs_are_named_and_never_averaged_over(root, swept):
    plan = planning.plan("table1", root=root)
    values = {"test_local": [50], "test_base": [40], "test_novel": [30], "test_hm": [38]}

    def metrics(trial, fold):
        one = trial.experiment
        if one.method.name == "coop" and one.data.name == "dtd":
            return None
        return None if one.method.name == "fedpgp" and one.data.name == "dtd" and fold.seed == 2 else values

    found = cells.fill(plan, [swept(only(plan), metrics)])
    assert found.missing == (
        "CoOp, data=dtd, seed 1: not run", "CoOp, data=dtd, seed 2: not run", "CoOp, data=dtd, seed 3: not run",
        "FedPGP, data=dtd, seed 2: failed: disk full",
    )  # fmt: skip
    assert found.cells[Key("dtd", "CoOp", "local")].measured is None
    assert found.cells[Key("average", "CoOp", "local")].measured is None
    assert list(found.cells[Key("average", "FedPGP", "local")].measured.by_seed) == [1, 3]
    text = [[cell.text for cell in row] for row in cells.all_tables(found)[3].rows]
    assert text[3:6] == [
        ["CoOp", "-", "-", "-", "-"], ["  paper", "86.38", "39.20", "37.65", "47.13"], ["  difference", "", "", "", ""]
    ]  # fmt: skip
    assert text[-3:] == [
        ["FedPGP", "50.00 ± 0.00", "40.00 ± 0.00", "30.00 ± 0.00", "38.00 ± 0.00"],
        ["  paper", "89.07", "69.65", "55.25¹", "68.15"],
        ["  difference", "-39.07", "-29.65", "-25.25", "-30.15"],
    ]
    assert any(line.startswith("¹ the paper's number is doubtful: 54.25") for line in cells.remarks(found))


def test_an_average_of_other_data_sets_is_marked(root, swept):
    plan = planning.plan("table6", data=["dtd", "food101"], root=root)
    values = {"test_local": [50], "test_base": [40], "test_novel": [30], "test_hm": [38]}
    found = cells.fill(plan, [swept(only(plan), lambda trial, fold: values)])
    assert found.cells[Key("average", "FedPGP", "local")].marks == ("data",)
    assert found.cells[Key("dtd", "FedPGP", "local")].marks == ()
    assert found.changed == {"data": ("average of dtd, food101 only",)}


def test_table_4_is_read_client_by_client(root, swept):
    plan = planning.plan("table4", root=root, overrides=["folds.seeds=[1]"])
    rows = [
        {"round": 1, "client": client, "split": "test", "metric": "held_out", "correct": correct, "total": 10}
        for client, correct in ((0, 6), (1, 9))
    ]
    clients = pa.Table.from_pylist(rows, CLIENT_SCHEMA)
    domains = ("amazon", "caltech", "dslr", "webcam")
    folder = swept(only(plan), lambda trial, fold: {"test_held_out": [75]}, domains, clients)
    found = cells.fill(plan, [folder])
    row = found.blocks["FedPGP"]["amazon"]
    ours = {column: cell.measured.mean for column, cell in row.items() if cell.measured}
    assert ours == {"anna": 60, "ben": 90, "mean": 75, "spread": pytest.approx(21.2132)}
    assert row["mean"].printed.value == 96.55
    assert found.columns == (*domains, "anna", "ben", "mean", "spread")
    assert found.blocks["FedPGP"]["caltech"]["mean"].doubt == "the mean of its cells is 91.72"


def test_table_11_is_read_by_rank_and_shots(root, swept):
    plan = planning.plan("table11", data=["dtd"], root=root, overrides=["folds.seeds=[1]"])

    def metrics(trial, fold):
        return {"test_local": [trial.experiment.method.settings["rank"] + trial.experiment.protocol.shots / 100]}

    found = cells.fill(plan, [swept(only(plan), metrics)])
    assert found.cells[Key("dtd", "rank 4", "16 shots")].measured.by_seed == {1: 4.16}
    assert len(found.cells) == 20
    assert list(found.blocks["dtd"]["rank 1"]) == ["1 shot", "2 shots", "4 shots", "8 shots", "16 shots"]


@pytest.mark.parametrize("table", TABLES)
def test_every_number_doubt_and_assumption_of_the_paper_is_printed_also_without_runs(table, root, swept):
    plan = planning.plan(table, root=root)
    folders = [swept(part, lambda trial, fold: None, ("one", "two")) for part in plan.parts]
    found = cells.fill(plan, folders)
    known, told = found.paper, cells.remarks(found)
    signs = {line.partition(" the paper's number is doubtful: ")[2]: line[0] for line in told if "doubtful" in line}
    assert set(signs) == set(known.doubtful.values())
    shown = [
        cell.text
        for table in cells.all_tables(found)
        for row in table.rows
        if row[0].text == "  paper"
        for cell in row[1:]
        if cell.text
    ]
    expected = [
        f"{value:.2f}" + ("" if std is None else f" ± {std:.2f}") + signs.get(known.doubtful.get(key), "")
        for key, (value, std) in known.values.items()
    ]
    assert sorted(shown) == sorted(expected)
    assert told[-1 - len(known.assumed) :] == [f"paper: {known.source}", *known.assumed]


def test_in_a_smoke_one_data_set_represents_all_and_is_marked(swept):
    plan = planning.plan("table5", smoke=True)
    found = cells.fill(plan, [swept(only(plan), lambda trial, fold: {"test_local": [50]})])
    for data in ("cifar10", "cifar100"):
        cell = found.cells[Key("", "FedPGP", data)]
        assert (cell.measured.mean, cell.marks) == (50, ("backbone", "data", "settings"))
    assert found.changed["data"] == ("data.name is icons",)
    text = [[cell.text for cell in row] for row in cells.all_tables(found)[0].rows]
    assert text[-1] == ["  difference", "-44.82ᵇᵈˢ", "-27.44ᵇᵈˢ"]
    rows = list(csv.DictReader(io.StringIO(cells.as_csv(found))))
    assert rows[-1]["paper_std"] == "0.15"
    assert rows[-1]["differs"] == "backbone data settings"
