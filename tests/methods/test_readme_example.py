"""The README's example of a method works in a file of a user's own, through the command."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from three_clients import batch, distinct_params

from fedpgp import methods
from fedpgp.methods.fedpgp import FedPGPSettings

README = Path(__file__).parents[2] / "README.md"
NAME = "method.name=my_methods:SparseFedPGP"
SMALL = {
    "name": "own", "data": {"name": "shapes"}, "backbone": {"name": "tiny", "weights": "random"},
    "partition": {"clients": 2}, "protocol": {"shots": 2}, "method": {"n_ctx": 2, "rank": 1},
    "federation": {"rounds": 2, "local_epochs": 1, "block_size": 1}, "tracking": {"mlflow": False},
    "resources": {"backend": "serial", "actors": 2, "cpus_per_actor": 0.5},
}  # fmt: skip


def example():
    section = README.read_text(encoding="utf-8").split("## Your method", 1)[1].split("\n## ", 1)[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return code


@pytest.fixture
def folder(tmp_path):
    """A folder with the example in `my_methods.py` and a small experiment, and nothing else."""
    (tmp_path / "my_methods.py").write_text(example(), encoding="utf-8")
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(SMALL))
    return tmp_path


def command(folder, *arguments, code=0):
    """Run `fedpgp` in a process as the installed script does; gives stdout and stderr."""
    script = "import sys; del sys.path[0]; from fedpgp.cli import main; main()"  # a script has no working folder in it
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def run_of(folder, name):
    (found,) = (folder / "fedpgp-store" / "runs").glob(f"{name}-*")
    return found


def test_the_example_adds_its_penalty(bind, features, labels):
    namespace: dict[str, type] = {}
    exec(example(), namespace)
    settings = FedPGPSettings(n_ctx=3, rank=2)
    plain, sparse = methods.create("fedpgp", settings.model_dump()), namespace["SparseFedPGP"](settings)
    frozen = bind(plain)
    params, received = distinct_params(plain, frozen)
    images = batch(features["pooled"], labels)
    penalty = 0.01 * (params["U"] @ params["V"]).abs().flatten(1).sum(1)
    difference = sparse.loss(params, received, frozen, images)[0] - plain.loss(params, received, frozen, images)[0]
    assert penalty.min() > 0
    torch.testing.assert_close(difference, penalty, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_it_runs_is_reported_without_its_code_and_is_exported(folder):
    out, err = command(folder, "run", "my.yaml", NAME)
    assert f"loading method my_methods:SparseFedPGP from {folder / 'my_methods.py'}" in err
    command(folder, "run", "my.yaml", "name=plain")
    own, plain = run_of(folder, "own"), run_of(folder, "plain")
    identity = yaml.safe_load((own / "identity.json").read_text())
    assert identity["plugins"]["method"]["name"] == "my_methods:SparseFedPGP"
    assert len(identity["plugins"]["method"]["digest"]) == 16
    assert "plugins" not in yaml.safe_load((plain / "identity.json").read_text())
    (folder / "elsewhere").mkdir()
    shutil.move(folder / "my_methods.py", folder / "elsewhere" / "my_methods.py")
    for arguments in (["report", own, plain], ["compare", own, plain], ["runs", "fedpgp-store"]):
        out, err = command(folder, *arguments)
        assert "loading" not in err
        assert "my_methods" in out
    _, err = command(folder, "export", own, "--client", "1", "--out", "bedroom", code=2)
    assert f"method.name: no module my_methods in {folder} or in the environment" in err
    (folder / "elsewhere" / "my.yaml").write_text((folder / "my.yaml").read_text())
    _, err = command(folder / "elsewhere", "export", own, "--client", "1", "--out", folder / "bedroom")
    assert "loading method my_methods:SparseFedPGP from" in err
    shutil.move(folder / "elsewhere" / "my_methods.py", folder / "my_methods.py")
    Image.new("RGB", (40, 30), (200, 100, 0)).save(folder / "photo.png")
    _, err = command(folder, "predict", "--prompt", "bedroom/prompt.safetensors", "photo.png")
    assert "loading method my_methods:SparseFedPGP from" in err
    assert "training" not in err
    (folder / "my_methods.py").write_text(example() + "\n# edited\n")
    _, err = command(folder, "predict", "--prompt", "bedroom/prompt.safetensors", "photo.png")
    assert "method my_methods:SparseFedPGP: its code is not that of the training" in err
    assert (folder / "bedroom" / "mlflow-model" / "code" / "my_methods.py").read_text() == example()


@pytest.mark.slow
def test_ray_workers_give_the_bits_of_one_process(folder):
    for backend in ("serial", "ray"):
        command(folder, "run", "my.yaml", NAME, f"name={backend}", f"resources.backend={backend}")
    serial, ray = (run_of(folder, name) for name in ("serial", "ray"))
    assert serial.name.rpartition("-")[2] == ray.name.rpartition("-")[2]
    for file in ("clients.arrow", "checkpoints/000002.safetensors"):
        assert (serial / file).read_bytes() == (ray / file).read_bytes()


@pytest.mark.slow
def test_a_sweep_runs_it_and_an_edit_makes_other_trials(folder):
    search = "method.rank={grid_search: [1, 2]}"
    out, _ = command(folder, "sweep", "my.yaml", NAME, search)
    assert out.count("finished") == 2
    _, err = command(folder, "sweep", "my.yaml", NAME, search, "--resume")
    assert "2 of 2 trials finished before" in err
    (folder / "my_methods.py").write_text(example().replace("0.01 *", "0.02 *"))
    command(folder, "sweep", "my.yaml", NAME, search)
    assert len(list((folder / "fedpgp-store" / "runs").glob("own-*"))) == 4


@pytest.mark.slow
def test_a_resumed_run_refuses_an_edited_method(folder):
    command(folder, "run", "my.yaml", NAME)
    own = run_of(folder, "own")
    status = yaml.safe_load((own / "status.json").read_text())
    (own / "status.json").write_text(json.dumps(status | {"state": "stopped"}))
    before = yaml.safe_load((own / "identity.json").read_text())["plugins"]["method"]["digest"]
    (folder / "my_methods.py").write_text(example().replace("0.01 *", "0.02 *"))
    _, err = command(folder, "run", "my.yaml", NAME, "--resume", code=2)
    assert re.search(rf"method\.code: was {before}, is [0-9a-f]{{16}}", err)
    (folder / "my_methods.py").write_text(example())
    command(folder, "run", "my.yaml", NAME, "--resume")
