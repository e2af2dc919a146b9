"""Learned prompts, from checkpoints with known tensors and with the model of the package."""

from __future__ import annotations

import pytest
import torch

from fedpgp.analysis import prompts
from fedpgp.clip import model
from fedpgp.config import BackboneSettings
from fedpgp.core.errors import BackboneError
from fedpgp.storage.run_folder import RunFolder

SHARED = {"ctx": torch.zeros(1, 2, 3)}
U = torch.tensor([[[[3.0], [0.0]]], [[[0.0], [4.0]]]])  # (K=2, N=1, L=2, R=1)
V = torch.tensor([[[[1.0, 0.0, 0.0]]], [[[1.0, 0.0, 0.0]]]])  # (2, 1, 1, 3)


def test_the_personal_part_is_the_product(made_run):
    found = prompts.prompts(RunFolder.open(made_run(test_hm=[1], shared=SHARED, personal={"U": U, "V": V})))
    assert found.personal.tolist() == [[[3, 0, 0], [0, 0, 0]], [[0, 0, 0], [4, 0, 0]]]
    assert found.shared.shape == (2, 3)
    assert found.similarity().tolist() == [[1, 0], [0, 1]]  # they change different tokens
    assert found.spectrum().values.tolist() == [[3, 0], [4, 0]]


def test_a_personal_context_and_a_method_without_one(made_run):
    own = torch.stack([torch.ones(2, 3), -torch.ones(2, 3)])
    found = prompts.prompts(RunFolder.open(made_run("method.name=coop", test_hm=[1], personal={"ctx": own})))
    assert found.shared is None
    assert found.similarity().tolist() == [[pytest.approx(1), pytest.approx(-1)], [pytest.approx(-1), pytest.approx(1)]]
    assert prompts.prompts(RunFolder.open(made_run("method.name=zero_shot", test_hm=[1]))) is None


def test_only_the_first_layer_of_deep_prompts_has_token_embeddings(made_run):
    """MaPLe's prompts of the layers after the first replace hidden states, which have no nearest words."""
    deep = {"ctx": torch.arange(12.0).reshape(2, 2, 3), "coupling.weight": torch.zeros(2, 4, 3)}
    found = prompts.prompts(RunFolder.open(made_run("method.name=fedmaple", test_hm=[1], shared=deep)))
    assert found.shared.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found.personal is None


def test_words_are_nearest_to_themselves(made_run):
    settings = BackboneSettings(name="icon-clip", weights=None)
    backbone = model.load(settings)
    store = RunFolder.open(made_run("backbone.name=icon-clip", "backbone.weights=null", test_hm=[1]))
    (store.path / "identity.json").write_text(f'{{"weights_fingerprint": "{backbone.fingerprint}"}}')
    tokens = backbone.tokenize(["an icon of a"])[0, 1:5]
    context = backbone.model.token_embedding.weight[tokens]
    found = prompts.near_words(store, context, count=2)
    assert [one.words[0] for one in found] == ["an", "icon", "of", "a"]
    assert [one.distances[0] for one in found] == pytest.approx([0, 0, 0, 0], abs=1e-3)
    assert all(one.distances[1] > 0.01 for one in found)


def test_another_backbone_is_refused(made_run):
    with pytest.raises(BackboneError, match="are not the weights of the run"):
        prompts.near_words(RunFolder.open(made_run(test_hm=[1])), torch.zeros(2, 64))
