"""The command line: what it prints, and how it refuses what it cannot use (exit code 2, one line, nothing written)."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from fedpgp import config
from fedpgp.analysis.report import terminal
from fedpgp.bench.measurement import descendants
from fedpgp.core.errors import FedPGPError
from fedpgp.experiments.sweeps import sweep_settings
from fedpgp.storage.objectives import Objectives
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Fold, SweepFolder, TrialSpec
from fedpgp.tracking import Mirror, artifacts

SMALL = [
    "protocol.shots=1", "partition.clients=2", "method.n_ctx=1", "method.rank=1", "federation.rounds=2",
    "federation.local_epochs=1", "resources.backend=serial",
]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


def photos(root, classes=("cat", "dog", "emu", "fox"), each=4):
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(each):
            Image.new("RGB", (8, 8), (60 * label, 40 * number, 99)).save(root / name / f"{number}.png")
    return root


def test_run_then_report(fedpgp, store):
    code, out, err = fedpgp("run", "shapes", *SMALL, f"storage.root={store}")
    assert code == 0
    run = Path(out.rsplit("run: ", 1)[1].strip())
    assert (run / "summary.json").is_file()
    for word in ("Local", "Base", "Novel", "HM", "mean of last 5", "max", "sent up", "client 1"):
        assert word in out
    assert "frozen features" in err
    assert "rounds 2/2" in err
    plan = r"plan: fedpgp, 2 clients in blocks of 10 on 1 process \(1 CPU, 0 GPU\), about 5\d\d.\d MiB of memory each"
    assert re.search(plan, err)
    code, table, _ = fedpgp("report", run)
    assert code == 0
    assert table == out.rsplit("run: ", 1)[0]


def test_mlflow_has_the_numbers_of_the_rows(fedpgp, store):
    from mlflow.tracking import MlflowClient

    _, out, _ = fedpgp("run", "shapes", *SMALL, f"storage.root={store}", "seed=7")
    run = Path(out.rsplit("run: ", 1)[1].strip())
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    (mirrored,) = client.search_runs(["1"], f"attributes.run_name = '{run.name}'")
    assert mirrored.info.status == "FINISHED"
    assert mirrored.data.params["method.rank"] == "1"
    for line in (run / "rounds.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, value in row["metrics"].items():
            (metric,) = [m for m in client.get_metric_history(mirrored.info.run_id, name) if m.step == row["round"]]
            assert metric.value == value


def test_the_table_is_printed_before_artifacts_are_sent(fedpgp, store, monkeypatch):
    order = []

    def noting(what, function):
        return lambda *arguments: order.append(what) or function(*arguments)

    monkeypatch.setattr(terminal, "show", noting("table", terminal.show))
    monkeypatch.setattr(artifacts, "of_run", noting("artifacts", artifacts.of_run))
    assert fedpgp("run", "shapes", *SMALL, f"storage.root={store}", "seed=8")[0] == 0
    assert order == ["table", "artifacts"]


def test_ctrl_c_while_artifacts_are_sent_loses_nothing(fedpgp, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    def interrupted(mirror, timeout=60.0):
        mirror._thread.join(timeout)
        raise KeyboardInterrupt

    def late(*arguments):
        raise FedPGPError("not sent in time")

    with monkeypatch.context() as patched:
        patched.setattr(Mirror, "close", interrupted)
        patched.setattr(artifacts, "of_run", late)
        code, out, err = fedpgp("run", "shapes", *SMALL, f"storage.root={tmp_path}")
    run = Path(out.rsplit("run: ", 1)[1].strip())
    assert (code, RunFolder.open(run).state) == (130, "finished")
    assert err.splitlines()[-1] == f"interrupted while sending to MLflow; `fedpgp track sync {run}` sends the rest"
    assert fedpgp("track", "sync", run)[0] == 0
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (mirrored,) = client.search_runs(["1"])
    assert mirrored.info.status == "FINISHED"
    assert "summary.json" in {file.path for file in client.list_artifacts(mirrored.info.run_id)}


def test_the_mirror_is_rebuilt_from_the_rows(fedpgp, tmp_path):
    from mlflow.tracking import MlflowClient

    root = tmp_path / "store"
    _, out, _ = fedpgp("run", "shapes", *SMALL, f"storage.root={root}", "tracking.mlflow=false")
    assert not (root / "mlflow.db").exists()
    for _ in range(2):
        code, said, _ = fedpgp("track", "sync", root)
        assert (code, said.count("synced: ")) == (0, 1)
    (mirrored,) = MlflowClient(f"sqlite:///{root}/mlflow.db").search_runs(["1"])
    assert mirrored.info.run_name == Path(out.rsplit("run: ", 1)[1].strip()).name
    planned = TrialSpec("abc", "it", {}, (Fold(1),))
    given = config.dump(sweep_settings.load("shapes")[0])
    begun = SweepFolder.create(tmp_path / "begun", "new", "0" * 12, given, Objectives(("val/hm",)), [planned])
    begun.set_status("stopped", "before its first run")
    code, said, err = fedpgp("track", "sync", tmp_path / "begun")
    assert (code, said, err) == (0, f"synced: {begun.path}\n", "")
    code, _, err = fedpgp("track", "sync", tmp_path / "nowhere")
    assert (code, "no run found" in err) == (2, True)


@pytest.mark.slow
def test_every_domain_is_held_out_once(fedpgp, tmp_path):
    given = ["protocol.name=leave_one_domain_out", "protocol.held_out=all", "partition.scheme=domain"]
    small = [item for item in SMALL if not item.startswith("partition")]
    root = tmp_path / "store"
    code, out, err = fedpgp(
        "run", "shapes", *small, *given, "partition.clients=null", f"storage.root={root}", "tracking.mlflow=false"
    )
    assert code == 0, err
    runs = {store.identity["client_names"][0]: store for store in RunFolder.find(root)}
    assert len(RunFolder.find(root)) == 3
    table = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    for domain in ("filled", "outline", "dotted"):
        assert table[domain].count(" - ") == 1  # nobody has the domain that is held out
    assert all("test/held_out" in store.rounds()[-1].metrics for store in runs.values())


def test_features_then_run_opens_the_cache(fedpgp, store):
    code, out, _ = fedpgp("features", "shapes", *SMALL, f"storage.root={store}", "protocol.shots=2")
    assert code == 0
    assert Path(out.removeprefix("features: ").strip()).is_file()
    _, _, err = fedpgp("run", "shapes", *SMALL, f"storage.root={store}", "protocol.shots=2", "tracking.mlflow=false")
    assert "frozen features" not in err


def test_features_dry_run_says_bytes_and_time_and_extracts_nothing(fedpgp, tmp_path):
    root = tmp_path / "store"
    given = ["shapes", *SMALL, f"storage.root={root}", "protocol.shots=2"]
    code, out, _ = fedpgp("features", *given, "--dry-run")
    assert code == 0
    for words in ("to encode", "bytes to write", "from 16 images encoded on this machine, for 1 workers x 1 threads"):
        assert words in " ".join(out.split())
    assert not list(tmp_path.rglob("*.arrow"))
    _, _, err = fedpgp("features", *given)
    assert "images/s" in err
    _, out, _ = fedpgp("features", *given, "--dry-run")
    assert "all features are cached" in out


def test_methods(fedpgp):
    code, out, _ = fedpgp("methods")
    assert code == 0
    for word in ("zero_shot", "coop", "promptfl", "fedpgp", "ICML 2024", "U, V"):
        assert word in out
    code, out, _ = fedpgp("methods", "--server")
    assert code == 0
    for word in ("fedavg", "krum", "every update", "images", "NeurIPS 2017", "iterations: 3"):
        assert word in out


def test_notes_on_a_method_or_a_rule(fedpgp):
    code, out, err = fedpgp("methods", "--notes", "promptfl", "--backbone", "tiny")
    assert (code, err) == (0, "")
    for words in ("promptfl: Guo et al.", "Departs from the authors' code", "4.0 KiB (4,096 bytes)", "on tiny"):
        assert words in out
    code, out, _ = fedpgp("methods", "--server", "--notes", "krum")
    assert (code, "attackers that are tolerated" in out) == (0, True)
    code, out, err = fedpgp("methods", "--notes", "promptf")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "unknown method 'promptf'; did you mean promptfl?" in err
    code, _, err = fedpgp("methods", "--backbone", "tiny")
    assert (code, err) == (2, "error: --backbone: it counts the parameters of one method; give --notes NAME\n")


@pytest.mark.parametrize("command", [[], ["run"], ["features"], ["methods"], ["report"]])
def test_help(fedpgp, command):
    code, out, _ = fedpgp(*command, "--help")
    assert code == 0
    assert "Usage" in out


def test_the_thin_script_is_the_same_command():
    script = Path(__file__).parents[2] / "pipelines" / "run.py"
    done = subprocess.run([sys.executable, script, "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "nothing: no such file, and no shipped experiment" in done.stderr


def refused(fedpgp, root, *arguments):
    """The one line on stderr, besides warnings about dropped settings; nothing may have been written."""
    code, out, err = fedpgp("run", "shapes", *SMALL, f"storage.root={root}", *arguments)
    lines = [line for line in err.splitlines() if not line.startswith(("preparing", "frozen features 0/"))]
    lines = [line for line in lines if ": dropped " not in line]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert "Traceback" not in err
    assert not list(root.glob("runs/*"))
    assert not [path for path in root.rglob("*") if path.suffix in (".arrow", ".tmp")]
    return lines[0]


def test_refuses_a_missing_folder(fedpgp, tmp_path):
    line = refused(fedpgp, tmp_path / "store", "data.name=folder", f"data.root={tmp_path / 'none'}")
    assert "none" in line


def test_refuses_an_empty_class(fedpgp, tmp_path):
    root = photos(tmp_path / "photos")
    (root / "gnu").mkdir()
    assert "gnu" in refused(fedpgp, tmp_path / "store", "data.name=folder", f"data.root={root}")


@pytest.mark.parametrize("content", [b"", b"not an image", "truncated"])
def test_refuses_an_unreadable_image(fedpgp, tmp_path, content):
    root = photos(tmp_path / "photos")
    victim = root / "cat" / "1.png"
    victim.write_bytes(victim.read_bytes()[:40] if content == "truncated" else content)
    line = refused(fedpgp, tmp_path / "store", "data.name=folder", f"data.root={root}", "protocol.shots=4")
    assert "cat/1.png" in line


def test_refuses_a_class_without_images(fedpgp, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    (tmp_path / "hf").mkdir()
    images = [{"bytes": data.getvalue(), "path": None}] * 4
    pq.write_table(pa.table({"image": images, "label": [0, 1, 3, 3]}), tmp_path / "hf" / "train.parquet")
    given = ["data.name=parquet", f"data.root={tmp_path / 'hf'}", "data.class_names=[a, b, c, d]"]
    assert "no image of c" in refused(fedpgp, tmp_path / "store", *given)


def test_refuses_a_storage_that_is_a_file(fedpgp, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = fedpgp("run", "shapes", *SMALL, f"storage.root={tmp_path / 'file'}")
    assert (code, "storage.root" in err) == (2, True)


def test_refuses_a_storage_that_mlflow_would_misread(fedpgp, tmp_path):
    message = "storage.root: .*what.x: MLflow supports no . in a path"
    code, _, err = fedpgp("run", "shapes", *SMALL, f"storage.root={tmp_path / 'what?x'}")
    assert code == 2
    assert re.search(message, err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["run"], ["sweep"], ["sweep", "--dry-run"], ["run", "resources.backend=ray"]])
def test_refuses_a_store_that_mlflow_can_never_open(fedpgp, tmp_path, monkeypatch, command):
    first, *more = command
    given = [first, "shapes", *SMALL, f"storage.root={tmp_path / 'store'}", *more]
    code, _, err = fedpgp(*given, "tracking.uri=nonsense://x")
    assert code == 2
    assert "error: tracking.uri: nonsense://x: MLflow knows no store of the kind 'nonsense'" in err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    code, _, err = fedpgp(*given)
    assert code == 2
    assert "error: MLFLOW_TRACKING_URI: ./mlruns: MLflow refuses a folder as a store" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["{}", "{}/file/x.db"])
def test_refuses_a_store_whose_file_cannot_be_written(fedpgp, tmp_path, place):
    (tmp_path / "file").touch()
    given = f"tracking.uri=sqlite:///{place.format(tmp_path)}"
    code, _, err = fedpgp("run", "shapes", *SMALL, f"storage.root={tmp_path / 'store'}", given)
    assert code == 2
    assert "error: tracking.uri: " in err
    assert "folder; give" in err


def test_the_store_and_experiment_of_the_environment_are_used_and_recorded(fedpgp, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    _, out, _ = fedpgp("run", "shapes", *SMALL, f"storage.root={tmp_path / 'store'}")
    run = Path(out.rsplit("run: ", 1)[1].strip())
    uri = f"sqlite:///{tmp_path}/mine.db"
    recorded = yaml.safe_load((run / "config.yaml").read_text())["tracking"]
    assert recorded == {"mlflow": True, "uri": uri, "experiment": "mine"}
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("mine").experiment_id
    assert [(one.info.run_name, one.info.status) for one in client.search_runs([experiment])] == [
        (run.name, "FINISHED")
    ]
    assert not (tmp_path / "store" / "mlflow.db").exists()


def test_a_path_is_printed_as_it_is(fedpgp, tmp_path):
    """Brackets are no colours."""
    for name in ("st [red] 'q\"", "a[/b]"):
        root = tmp_path / name
        code, out, _ = fedpgp("run", "shapes", *SMALL, f"storage.root={root}", "tracking.mlflow=false")
        assert code == 0
        assert Path(out.rsplit("run: ", 1)[1].strip()).parent == root / "runs"


def test_a_full_disk_is_a_line(fedpgp, monkeypatch):
    def full(*anything, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fedpgp.config.load", full)
    assert fedpgp("run", "shapes") == (1, "", "error: No space left on device; free disk space\n")


def test_a_terminal_without_some_sign_ends_nothing(made_run):
    """The tables have a plus-minus sign."""
    runs = [made_run(f"seed={seed}", test_local=[50, 50 + seed]) for seed in (1, 2)]
    environment = os.environ | {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "fedpgp", "report", *map(str, runs)]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert b"51.50 ?" in done.stdout


def running(pid):
    """Whether a process has not ended; one that nobody has waited for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]], ids=["SIGTERM", "Ctrl-C twice"])
def test_a_signal_ends_a_run_on_ray_and_all_its_processes(tmp_path, signals):
    root = tmp_path / "store"
    given = ["federation.rounds=5000", "resources.backend=ray", f"storage.root={root}"]
    command = [sys.executable, "-m", "fedpgp", "run", "shapes", *given]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 180
    while not list(root.glob("runs/*/rounds/*2.arrow")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    started = descendants(process.pid)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.3)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert any(command.startswith("ray::_Client") for command in started.values())
    deadline = time.monotonic() + 30
    while (left := [command for pid, command in started.items() if running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
    (store,) = RunFolder.find(root)
    stopped = "stopped; run folder:" in err and store.state == "stopped"
    at_once = (
        len(signals) == 2 and "stopped; continue with --resume" in err and store.state in ("stopped", "interrupted")
    )
    sending = len(signals) == 2 and "interrupted while sending to MLflow" in err and store.state == "stopped"
    assert stopped or at_once or sending, err  # the second signal may come when it has stopped, and while it does


def test_tables_in_a_file_are_wider_than_a_narrow_terminal():
    env = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    command = [sys.executable, "-m", "fedpgp", "methods"]
    written = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    ).stdout
    assert 80 < max(len(line.rstrip()) for line in written.splitlines()) <= 120


def test_refuses_a_label_out_of_range(fedpgp, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    images = [{"bytes": data.getvalue(), "path": None}] * 6
    (tmp_path / "hf").mkdir()
    pq.write_table(pa.table({"image": images, "label": [0, 1, 2, 0, 1, 7]}), tmp_path / "hf" / "train.parquet")
    line = refused(
        fedpgp, tmp_path / "store", "data.name=parquet", f"data.root={tmp_path / 'hf'}", "data.class_names=[a, b, c]"
    )
    assert "label 7" in line or "7" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["partition.clients=16"], "16 clients"),
        (["method.name=fedpg"], "unknown method 'fedpg'; did you mean fedpgp"),
        (["method.rnk=3"], "method fedpgp: rnk: unknown key; did you mean rank"),
        (["federation.round=3"], "federation.round: unknown key; did you mean rounds"),
        (["backbone.name=ViT-B-61"], "no model 'ViT-B-61'; did you mean ViT-B-16"),
        (["backbone.name=ViT-B-16-SigLIP", "backbone.weights=webli"], "cannot be prompted"),
        (["backbone.weights=/none/model.pt", "backbone.activation=gelu"], "/none/model.pt"),
        (
            [
                "--detach",
                "partition={scheme: domain, clients: null}",
                "protocol={name: leave_one_domain_out, held_out: all}",
            ],
            "--detach: protocol.held_out=all starts one run per domain",
        ),
    ],
)
def test_refuses_settings(fedpgp, tmp_path, arguments, message):
    assert message in refused(fedpgp, tmp_path / "store", *arguments)


def test_refuses_a_checkpoint_of_another_model(fedpgp, tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"visual.proj": torch.zeros(3, 3)}, tmp_path / "wrong.safetensors")
    weights = [f"backbone.weights={tmp_path / 'wrong.safetensors'}", "backbone.activation=gelu"]
    line = refused(fedpgp, tmp_path / "store", *weights)
    assert "wrong.safetensors" in line


def test_refuses_a_cache_of_another_model(fedpgp, tmp_path):
    root = tmp_path / "store"
    fedpgp("features", "shapes", *SMALL, f"storage.root={root}")
    (cache,) = (root / "features").glob("*.arrow")
    other = fedpgp("features", "shapes", *SMALL, f"storage.root={tmp_path / 'b'}", "backbone.activation=quick_gelu")
    assert other[0] == 0
    (foreign,) = (tmp_path / "b" / "features").glob("*.arrow")
    cache.write_bytes(foreign.read_bytes())
    code, _, err = fedpgp("run", "shapes", *SMALL, f"storage.root={root}")
    assert code == 2
    assert "features of another key (weights is" in err
    assert not list(root.glob("runs/*"))


def test_a_failure_of_ours_is_exit_code_1(fedpgp, store):
    code, _, err = fedpgp("run", "shapes", *SMALL, f"storage.root={store}", "federation.lr=1.0e+30")
    assert code == 1
    assert "local training: loss is nan; lower the learning rate" in err


def test_yaml_and_python_agree_on_a_small_experiment(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text(yaml.safe_dump({"name": "my", "federation": {"rounds": 2}}))
    assert config.load(str(file)) == config.parse({"name": "my", "federation": {"rounds": 2}})
