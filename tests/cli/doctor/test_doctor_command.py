"""`fedpgp doctor` as a person uses it: a verdict, an exit code, and nothing changed by looking."""

from __future__ import annotations

import json
import os
import re

import pytest
from small_experiment import SMALL, files

NINE_GPUS = [
    "resources.backend=ray",
    "resources.actors=9",
    "resources.cpus_per_actor=0.1",
    "resources.gpus_per_actor=1",
]


def test_the_command_ends_with_a_verdict_and_changes_nothing(fedpgp, tmp_path, made_run):
    root = tmp_path / "store"
    made_run(root=root, test_local=[50])
    before = files(root)
    code, out, _ = fedpgp("doctor", "shapes", *SMALL, f"storage.root={root}")
    assert code == 0
    assert re.match(r"(ready: all \d+ checks passed|usable: )", out.splitlines()[-1])
    assert files(root) == before


def test_without_an_experiment_the_embedded_data_are_looked_at(fedpgp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = fedpgp("doctor", "--json")
    told = json.loads(out)
    names = [one["name"] for one in told["findings"]]
    assert code == 0
    assert {"python", "packages", "machine", "gpu", "ray", "disk", "caches", "runs", "sweeps", "tracking"} <= {*names}
    assert names[-1] == "data"
    assert told["findings"][-1]["what"].startswith("icons: 6,930 images")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "name", "told"),
    [
        (["data.name=folder", "data.root=/not/there"], "data", "data.root: /not/there: no such folder"),
        (["federation.rounds=0", "federation.round=1"], "settings", "unknown key; did you mean rounds?"),
        (["method.name=fedpg"], "plan", "unknown method 'fedpg'; did you mean fedpgp?"),
        (["partition.clients=16"], "plan", "16 clients"),
        (NINE_GPUS, "resources", "short of GPU"),
        (["storage.root=/proc/self/fdinfo"], "disk", "nothing can be written to /proc/self/fdinfo"),
    ],
)  # fmt: skip
def test_a_problem_is_named_and_exits_with_1(fedpgp, tmp_path, overrides, name, told):
    code, out, _ = fedpgp("doctor", "shapes", *SMALL, f"storage.root={tmp_path}", *overrides, "--json")
    found = json.loads(out)
    assert (code, found["state"]) == (1, "problem")
    assert name in found["verdict"]
    assert any(told in one["what"] for one in found["findings"] if one["name"] == name and one["state"] == "problem")


def test_planted_secrets_are_not_shown(fedpgp, tmp_path, monkeypatch):
    secret = "planted-S3CRET"
    for variable in ("RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, secret)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    given = [f"storage.root={tmp_path}", "tracking.mlflow=true", f"tracking.uri=http://me:{secret}@127.0.0.1:9"]
    code, out, err = fedpgp("doctor", "shapes", *SMALL, *given, "--json")
    assert code == 0
    assert secret not in out + err
    assert os.environ["HOME"] not in out
    (mirror,) = [one for one in json.loads(out)["findings"] if one["name"] == "tracking"]
    assert (mirror["state"], "http://***@127.0.0.1:9" in mirror["what"]) == ("warning", True)
