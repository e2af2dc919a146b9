"""`fedpgp reproduce` from the command line: short runs of all tables, files, invalid input."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fedpgp.analysis.reproduce.tables import TABLES
from fedpgp.data.sources.domains import OFFICE_CLASSES, OFFICE_DOMAINS


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def table_in(path):
    return list(csv.DictReader(Path(path).read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table3"], ["table3: no such table", "table11"]),
        (["fedtgp"], ["fedtgp: no such table; did you mean fedtpg?"]),
        (["fedtpg", "--root", "nowhere"], ["nowhere/sun397: no such folder; --root", "nowhere/imagenet"]),
        (["TABLE2"], ["TABLE2: no such table; did you mean table2?"]),
        (["table2", "--smoke", "protocol.held_out=amazon"], ["folds.held_out overrides it"]),
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


def test_the_list_needs_no_table_and_no_data(fedpgp):
    code, out, _ = fedpgp("reproduce", "--list")
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert code == 0
    assert TABLES.keys() <= lines.keys()
    assert "Qiu et al., ICLR 2024" in lines["fedtpg"]
    assert [lines[name].split()[-1] for name in ("fedtpg", "fedmgp", "dp_fpl")] == ["6", "162", "140"]
    assert lines["table2"].endswith("36 per domain ")


@pytest.fixture
def office(tmp_path):
    """Office-Caltech10 as it is unpacked, in a folder called as its archive: four 8 x 8 images per domain and class."""
    renamed = {"back_pack": "backpack", "laptop_computer": "laptop"}
    for shade, domain in enumerate(OFFICE_DOMAINS):
        for label, name in enumerate(OFFICE_CLASSES):
            folder = tmp_path / "sets" / "office_caltech_10" / domain / renamed.get(name, name)
            folder.mkdir(parents=True)
            for number in range(4):
                image = Image.new("RGB", (8, 8), (25 * label, 60 * shade, 40 * number))
                image.save(folder / f"frame_{number:04d}.jpg")
    return tmp_path / "sets"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_table_4_on_the_folders_of_its_data_set(fedpgp, office):
    small = [
        "backbone.name=tiny", "backbone.weights=random", "federation.rounds=1", "federation.local_epochs=1",
        "protocol.shots=1", "protocol.val_shots=1", "folds.seeds=[1,2]", "tracking.mlflow=false",
        "resources.backend=serial", "tune.max_concurrent=1",
    ]  # fmt: skip
    code, out, err = fedpgp("reproduce", "table4", "--root", office, "--out", "here", *small)
    assert code == 0, err
    rows = {(row["block"], row["row"], row["column"]): row for row in table_in("here/table4.csv")}
    assert len(rows) == 2 * 4 * 5  # CoOp and FedPGP, held-out domains, three clients, their mean and its spread
    cell = rows["FedPGP", "amazon", "caltech"]
    assert (cell["paper"], cell["seeds"], cell["differs"]) == ("96.45", "1 2", "backbone settings")
    mean = [float(rows["FedPGP", "amazon", client]["mean"]) for client in ("caltech", "dslr", "webcam")]
    assert float(rows["FedPGP", "amazon", "mean"]["mean"]) == pytest.approx(sum(mean) / 3)
    assert all(row["mean"] for row in rows.values())
    assert "91.92¹" in out
    assert "missing" not in out
    page = Path("here/table4.html").read_text(encoding="utf-8")
    assert page.index("table4: Leave one domain out") < page.index("Accuracy on test images")
    assert f"fedpgp reproduce table4 --root {office}" in page


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """One round, one trial at a time, and one store for all tables: their features are extracted once."""
    root = tmp_path_factory.mktemp("smokes")
    return [
        "tracking.mlflow=false", "federation.rounds=1", "tune.max_concurrent=1", f"storage.root={root}",
    ]  # fmt: skip


WITH_ACTORS = "table7"
"""The table whose trials have an actor each, as `--smoke` alone sets; those of the others compute in their process."""
IN_STEPS = "dp_fpl"
"""The table whose rounds are a number of steps; those of the others are epochs, and here one."""
HELD_OUT = {"table2": ["folds.held_out=[noto,lucide]"], "table4": ["folds.held_out=[noto,lucide]"]}
"""Two of the eight domains."""


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("table", TABLES)
def test_the_smoke_of_every_table_ends_with_all_its_cells(fedpgp, table, short):
    settings = [*short, *HELD_OUT.get(table, []), *([] if table == WITH_ACTORS else ["resources.backend=serial"])]
    settings += [] if table == IN_STEPS else ["federation.local_epochs=1"]
    code, out, err = fedpgp("reproduce", table, "--smoke", "--out", "here", *settings)
    assert code == 0, err
    assert f"{table}: {TABLES[table].title}" in out
    rows = table_in(f"here/{table}.csv")
    assert rows
    assert [row for row in rows if not row["mean"]] == []
    assert {row["seeds"] for row in rows} == {"1"}
    assert all("data" in row["differs"] and "settings" in row["differs"] for row in rows)
    again = fedpgp("reproduce", table, "--smoke", *settings)
    assert (again[0], "finished before" in again[2]) == (0, True)  # nothing is run twice


@pytest.mark.slow
def test_the_script_is_the_command(tmp_path):
    script = Path(__file__).parents[3] / "pipelines" / "reproduce.py"
    command = [sys.executable, str(script), "table7", "--smoke", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, "FedPGP w/o Negative" in done.stdout) == (0, True)
