"""The scripts that are sent to a cluster run alone, and the cluster file is one that Ray takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

PIPELINES = Path(__file__).parents[1] / "pipelines"


def alone(script, folder, *arguments):
    """Run one script where nothing else is."""
    shutil.copy(PIPELINES / script, folder)
    done = subprocess.run(
        [sys.executable, script, *arguments], cwd=folder, env=os.environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("sweep.py", ["rank_mu_tau_shots", "--dry-run"], "36 trials"),
        ("lodo.py", ["office_lodo", "--dry-run"], "held out all"),
        ("reproduce.py", ["table5", "--smoke", "--dry-run"], "trials"),
        ("run.py", ["shapes", "resources.backend=serial", "federation.rounds=1", "tracking.mlflow=false"], "run: "),
        ("extract_features.py", ["shapes", "resources.backend=serial"], "features: "),
    ],
)
def test_a_script_runs_alone_in_an_empty_folder(script, arguments, said, tmp_path):
    assert said in alone(script, tmp_path, *arguments)
    assert not list(tmp_path.glob("*.yaml"))


def test_the_cluster_file_is_one_that_ray_takes():
    settings = yaml.safe_load((PIPELINES / "cluster.yaml").read_text(encoding="utf-8"))
    complete = prepare_config(settings)
    validate_config(complete)
    head = complete["available_node_types"][complete["head_node_type"]]
    workers = complete["available_node_types"]["gpu_worker"]
    assert (head["resources"]["GPU"], workers["resources"]["GPU"]) == (0, 1)
    assert head["max_workers"] == 0
    assert 0 < workers["max_workers"] <= complete["max_workers"]
