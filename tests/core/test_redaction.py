"""Secrets that are planted in what a person gives are in nothing that is written or printed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedpgp.core.text import redacted, without_user

SECRET = "planted-S3CRET"
SMALL = [
    "protocol.shots=1", "partition.clients=2", "method.n_ctx=1", "method.rank=1", "federation.rounds=1",
    "federation.local_epochs=1", "resources.backend=serial",
]  # fmt: skip


def leaks(root):
    """Files below a folder with a secret in them."""
    return [path for path in root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.fixture
def planted(monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.mark.usefixtures("planted")
def test_a_run_its_report_and_its_prompt_hold_no_secret(fedpgp, tmp_path):
    root, kept = tmp_path / "store", tmp_path / "kept"
    code, out, err = fedpgp(
        "run", "shapes", *SMALL, f"storage.root={root}", f"storage.uri=file://{kept}",
        f"tracking.uri=http://me:{SECRET}@127.0.0.1:9",
    )  # fmt: skip
    assert code == 0, err
    assert "MLflow at http://***@127.0.0.1:9" in " ".join(err.split())
    run = Path(out.rsplit("run: ", 1)[1].strip())
    said = [out, err]
    for command in (
        ["report", run, "--out", tmp_path / "report"],
        ["export", run, "--client", "0", "--out", tmp_path / "out"],
        ["track", "sync", root],
        ["track", "sync", root, "--uri", f"sqlite:///{root}/mlflow.db"],
    ):
        said += fedpgp(*command)[1:]
    assert (tmp_path / "report" / "report.html").is_file()
    assert (tmp_path / "out" / "prompt.json").is_file()
    assert (root / "mlflow.db").is_file()
    assert leaks(tmp_path) == []
    assert SECRET not in "".join(said)
    home = os.environ["HOME"]
    shared = [tmp_path / "report" / "report.html", tmp_path / "out" / "prompt.json"]
    assert all(home not in path.read_text(encoding="utf-8") for path in shared)


@pytest.mark.usefixtures("planted")
def test_a_failed_run_holds_no_secret(fedpgp, tmp_path):
    code, out, err = fedpgp(
        "run", "shapes", *SMALL, f"storage.root={tmp_path}", "federation.lr=1.0e+30", "federation.rounds=2",
        f"tracking.uri=http://me:{SECRET}@127.0.0.1:9",
    )  # fmt: skip
    assert code == 1
    assert list(tmp_path.glob("runs/*/traceback.txt"))
    assert leaks(tmp_path) == []
    assert SECRET not in out + err


def test_what_was_redacted_can_be_used_with_credentials_from_elsewhere():
    assert without_user(redacted(f"http://me:{SECRET}@host:5000/x")) == "http://host:5000/x"
    assert without_user("sqlite:////home/a/mlflow.db") == "sqlite:////home/a/mlflow.db"
