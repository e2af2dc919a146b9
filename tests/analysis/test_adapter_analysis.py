"""Adapters and personal prompts of whole runs, against an analysis of their parameters by hand."""

from __future__ import annotations

import threading

import pytest
import torch
from typer.testing import CliRunner

from fedpgp import cli, config
from fedpgp.analysis import adapter_analysis
from fedpgp.cli import report as command_line
from fedpgp.clip import model
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import ConfigError, RunError
from fedpgp.experiments import runner
from fedpgp.storage.run_folder import RunFolder


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """One round of a method on the drawn shapes; its folder."""

    def run(**method):
        tree = {
            "data": {"name": "shapes"},
            "backbone": {"name": "tiny", "weights": "random"},
            "partition": {"clients": 2},
            "protocol": {"shots": 1},
            "method": method,
            "federation": {"rounds": 1, "lr": 0.1, "local_epochs": 1},
            "resources": {"backend": "serial"},
            "storage": {"root": str(tmp_path_factory.mktemp("store"))},
        }
        return runner.run(config.parse(tree), False, RunCallback(), threading.Event())

    return run


@pytest.mark.parametrize("shared", [True, False])
def test_adapters_are_compared_with_the_weights_that_they_change(run_of, shared):
    """||dW|| and ||W|| of each layer (and client) from the parameters and open_clip's own weights."""
    run = run_of(name="fedlora", rank=2, alpha=6.0, targets=["v", "o"], shared=shared)
    state = RunFolder.open(run).state_at(1)
    tree = state.shared if shared else state.personal
    down, up = (tree[f"v.{part}"].reshape(-1, *tree[f"v.{part}"].shape[-2:]).double() for part in "AB")
    blocks = model.load(config.BackboneSettings(name="tiny", weights="random")).model.transformer.resblocks
    width = blocks[0].attn.embed_dim
    weights = [block.attn.in_proj_weight[2 * width :] for block in blocks]
    found = adapter_analysis.adapters(run)
    assert list(found) == ["v", "o"]
    assert found["v"].delta_norm == pytest.approx(float((3 * up @ down).norm(dim=(1, 2)).mean()), rel=1e-5)
    assert found["v"].weight_norm == pytest.approx(sum(float(w.norm()) for w in weights) / len(weights), rel=1e-5)
    outs = [block.attn.out_proj.weight for block in blocks]
    assert found["o"].weight_norm == pytest.approx(sum(float(w.norm()) for w in outs) / len(outs), rel=1e-5)
    assert found["v"].weight > max(found["v"].delta, found["v"].random) > 0
    everything = adapter_analysis.adapters(run, width)["v"]
    assert everything.delta == pytest.approx(everything.weight_norm) == pytest.approx(everything.random)
    with pytest.raises(ConfigError, match=f"--rank: {width + 1}: the weights have 1 to {width}"):
        adapter_analysis.adapters(run, width + 1)


def test_personal_prompts_by_their_spectrum(run_of):
    low = run_of(name="fedpgp", n_ctx=4, rank=2)
    state = RunFolder.open(low).state_at(1)
    found = adapter_analysis.personal_parts(low)
    assert found.values.shape[:2] == (2, 1)
    product = (state.personal["U"] @ state.personal["V"]).double()
    torch.testing.assert_close(found.values.square().sum(-1), product.square().sum((-1, -2)))
    assert torch.all(found.effective_rank() <= 2)
    full = adapter_analysis.personal_parts(run_of(name="fedpgp", n_ctx=4, adaptation="full_rank"))
    assert full.values.shape == (2, 1, 4)
    assert torch.all(full.energy(2) < 0.99)


def test_the_command_chooses_the_analysis_by_method(run_of, monkeypatch):
    monkeypatch.setattr(command_line.out, "_file", None)
    lora = CliRunner().invoke(cli.app, ["inspect", str(run_of(name="fedlora", rank=1))], catch_exceptions=False)
    assert [line.split()[0] for line in lora.output.splitlines() if line.startswith((" q ", " v "))] == ["q", "v"]
    prompts = CliRunner().invoke(cli.app, ["inspect", str(run_of(name="fedpgp", n_ctx=4, rank=1))])
    assert "100.0 %" in prompts.output
    with pytest.raises(RunError, match="promptfl adds no personal part to a global prompt"):
        CliRunner().invoke(cli.app, ["inspect", str(run_of(name="promptfl", n_ctx=2))], catch_exceptions=False)
    with pytest.raises(RunError, match="promptfl has no adapters"):
        adapter_analysis.adapters(run_of(name="promptfl", n_ctx=2))
