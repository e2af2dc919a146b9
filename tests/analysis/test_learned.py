"""What runs have learned: prompts with known tensors, adapters and spectra against an analysis by hand."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedpgp import cli, config
from fedpgp.analysis import adapters, learned
from fedpgp.analysis.adapters import overlap
from fedpgp.analysis.learned import spectrum
from fedpgp.cli import report as command_line
from fedpgp.clip import model
from fedpgp.config import BackboneSettings
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import BackboneError, ConfigError, RunError
from fedpgp.experiments import runner
from fedpgp.storage.run_folder import RunFolder

SHARED = {"ctx": torch.zeros(1, 2, 3)}
U = torch.tensor([[[[3.0], [0.0]]], [[[0.0], [4.0]]]])  # (K=2, N=1, L=2, R=1)
V = torch.tensor([[[[1.0, 0.0, 0.0]]], [[[1.0, 0.0, 0.0]]]])  # (2, 1, 1, 3)
WEIGHT = torch.diag(torch.tensor([3.0, 4.0, 12.0]))


def test_the_personal_part_is_the_product(made_run):
    store = RunFolder.open(made_run(test_hm=[1], shared=SHARED, personal={"U": U, "V": V}))
    shared, personal = learned.prompts(store)
    assert personal.tolist() == [[[3, 0, 0], [0, 0, 0]], [[0, 0, 0], [4, 0, 0]]]
    assert shared.shape == (2, 3)
    assert learned.similarity(personal).tolist() == [[1, 0], [0, 1]]  # they change different tokens
    assert spectrum(personal).values.tolist() == [[3, 0], [4, 0]]


def test_a_personal_context_and_a_method_without_one(made_run):
    own = torch.stack([torch.ones(2, 3), -torch.ones(2, 3)])
    shared, personal = learned.prompts(RunFolder.open(made_run("method.name=coop", test_hm=[1], personal={"ctx": own})))
    assert shared is None
    assert learned.similarity(personal) == pytest.approx(np.array([[1, -1], [-1, 1]]))
    assert learned.prompts(RunFolder.open(made_run("method.name=zero_shot", test_hm=[1]))) == (None, None)


def test_only_the_first_layer_of_deep_prompts_has_token_embeddings(made_run):
    """MaPLe's prompts of the layers after the first replace hidden states, which have no nearest words."""
    deep = {"ctx": torch.arange(12.0).reshape(2, 2, 3), "coupling.weight": torch.zeros(2, 4, 3)}
    shared, personal = learned.prompts(RunFolder.open(made_run("method.name=fedmaple", test_hm=[1], shared=deep)))
    assert shared.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert personal is None


def test_words_are_nearest_to_themselves(made_run):
    settings = BackboneSettings(name="icon-clip", weights=None)
    backbone = model.load(settings)
    store = RunFolder.open(made_run("backbone.name=icon-clip", "backbone.weights=null", test_hm=[1]))
    (store.path / "identity.json").write_text(f'{{"weights_fingerprint": "{backbone.fingerprint}"}}')
    tokens = backbone.tokenize(["an icon of a"])[0, 1:5]
    context = backbone.model.token_embedding.weight[tokens].numpy()
    found = learned.near_words(store, context, count=2)
    assert [nearest[0] for nearest, _ in found] == ["an", "icon", "of", "a"]
    assert [nearest[1] for nearest, _ in found] == pytest.approx([0, 0, 0, 0], abs=1e-3)
    assert all(second[1] > 0.01 for _, second in found)


def test_another_backbone_is_refused(made_run):
    with pytest.raises(BackboneError, match="are not the weights of the run"):
        learned.near_words(RunFolder.open(made_run(test_hm=[1])), np.zeros((2, 64)))


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
    found = adapters.adapters(run)
    assert list(found) == ["v", "o"]
    assert found["v"].delta_norm == pytest.approx(float((3 * up @ down).norm(dim=(1, 2)).mean()), rel=1e-5)
    assert found["v"].weight_norm == pytest.approx(sum(float(w.norm()) for w in weights) / len(weights), rel=1e-5)
    outs = [block.attn.out_proj.weight for block in blocks]
    assert found["o"].weight_norm == pytest.approx(sum(float(w.norm()) for w in outs) / len(outs), rel=1e-5)
    assert found["v"].weight > max(found["v"].delta, found["v"].random) > 0
    everything = adapters.adapters(run, width)["v"]
    assert everything.delta == pytest.approx(everything.weight_norm) == pytest.approx(everything.random)
    with pytest.raises(ConfigError, match=f"--rank: {width + 1}: the weights have 1 to {width}"):
        adapters.adapters(run, width + 1)


def test_personal_prompts_by_their_spectrum(run_of):
    low = run_of(name="fedpgp", n_ctx=4, rank=2)
    state = RunFolder.open(low).state_at(1)
    found = learned.personal_parts(low)
    assert found.values.shape[:2] == (2, 1)
    product = (state.personal["U"] @ state.personal["V"]).double()
    assert np.square(found.values).sum(-1) == pytest.approx(product.square().sum((-1, -2)).numpy())
    assert (found.effective_rank() <= 2).all()
    full = learned.personal_parts(run_of(name="fedpgp", n_ctx=4, adaptation="full_rank"))
    assert full.values.shape == (2, 1, 4)
    assert (full.energy(2) < 0.99).all()


def test_the_command_chooses_the_analysis_by_method(run_of, monkeypatch):
    monkeypatch.setattr(command_line.out, "_file", None)
    lora = CliRunner().invoke(cli.app, ["inspect", str(run_of(name="fedlora", rank=1))], catch_exceptions=False)
    assert [line.split()[0] for line in lora.output.splitlines() if line.startswith((" q ", " v "))] == ["q", "v"]
    prompts = CliRunner().invoke(cli.app, ["inspect", str(run_of(name="fedpgp", n_ctx=4, rank=1))])
    assert "100.0 %" in prompts.output
    with pytest.raises(RunError, match="promptfl adds no personal part to a global prompt"):
        CliRunner().invoke(cli.app, ["inspect", str(run_of(name="promptfl", n_ctx=2))], catch_exceptions=False)
    with pytest.raises(RunError, match="promptfl has no adapters"):
        adapters.adapters(run_of(name="promptfl", n_ctx=2))


def generator():
    return torch.Generator().manual_seed(0)


def test_overlap_by_hand():
    """dW = 2 e_1 e_2^T: its directions are u = e_1, v = e_2, and u^T W v = W_12 = 0. W's own: 12."""
    delta = torch.zeros(3, 3)
    delta[0, 1] = 2
    found = overlap(WEIGHT, delta, 1, generator())
    assert found.delta == pytest.approx(0, abs=1e-12)
    assert found.weight == pytest.approx(12)
    assert found.weight_norm == pytest.approx(13)  # sqrt(9 + 16 + 144)
    assert found.delta_norm == pytest.approx(2)


def test_the_weight_is_projected_and_not_the_change():
    """dW = diag(1, 5, 0) has the directions e_2, then e_1: of W they see 4, then sqrt(16 + 9). ||dW|| is sqrt(26)."""
    delta = torch.diag(torch.tensor([1.0, 5.0, 0.0]))
    first, both = (overlap(WEIGHT, delta, rank, generator()) for rank in (1, 2))
    assert (first.delta, both.delta) == pytest.approx((4, 5))
    assert both.weight == pytest.approx(160**0.5)  # 16 + 144
    assert both.amplification == pytest.approx(26**0.5 / 5)


def test_all_directions_see_all_of_the_weight():
    delta = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    found = overlap(WEIGHT, delta, 3, generator())
    assert (found.delta, found.weight, found.random) == pytest.approx((13, 13, 13))


def test_random_directions_see_little_of_a_large_weight():
    """A rank-1 weight of norm 1 in 200 x 100: u and v random, E (u^T W v)^2 = 1 / (200 * 100)."""
    weight = torch.zeros(200, 100)
    weight[0, 0] = 1
    seen = [overlap(weight, weight, 1, torch.Generator().manual_seed(seed)).random for seed in range(30)]
    assert sum(value**2 for value in seen) / 30 == pytest.approx(1 / 20000, rel=0.8)


@pytest.mark.parametrize(("delta", "rank"), [(torch.eye(2), 1), (torch.eye(3), 0), (torch.eye(3), 4)])
def test_mismatched_shapes_and_ranks_are_refused(delta, rank):
    with pytest.raises(ValueError, match=rf"weight \(3, 3\), delta .* rank {rank}"):
        overlap(WEIGHT, delta, rank, generator())


def test_spectrum_by_hand():
    """Singular values 4, 3 of [[0, 3], [4, 0]]: squares 16 of 25, then all."""
    found = spectrum(np.array([[0.0, 3.0], [4.0, 0.0]]))
    assert found.values.tolist() == pytest.approx([4, 3])
    assert [found.energy(rank).item() for rank in (0, 1, 2)] == pytest.approx([0, 0.64, 1])
    assert [found.effective_rank(share).item() for share in (0.6, 0.9)] == [1, 2]


def test_spectra_of_a_stack_of_prompts():
    """A product of rank 2, a matrix of equal singular values, and one that learned nothing."""
    u, v = (torch.randn(*shape, generator=generator()) for shape in ((4, 2), (2, 6)))
    found = spectrum(torch.stack([u @ v, torch.eye(4, 6), torch.zeros(4, 6)]).numpy())
    assert found.values.shape == (3, 4)
    assert found.energy(2).tolist() == pytest.approx([1, 0.5, 0])
    assert found.effective_rank(0.999).tolist()[1] == 4
    assert found.effective_rank(0.999).tolist()[0] <= 2


def test_the_words_of_stored_weights_are_those_of_the_model(monkeypatch):
    """The weights of the file have the fingerprint of the model, so that the model need not be built."""
    settings = BackboneSettings(name="icon-clip", weights=None)
    backbone = model.load(settings)
    assert model.stored_arrays(settings, "0" * 16) is None
    learned._words.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(model, "load", None)
        words, vectors = learned._words(settings, backbone.fingerprint)
    assert np.array_equal(vectors, backbone.model.token_embedding.weight[backbone.tokenize(words)[:, 1]])
