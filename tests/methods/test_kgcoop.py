"""KgCoOp: neutral at w = 0, its term by hand, and none at the hand-written prompt."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from three_clients import batch, distinct_params, gradients, learned, train

from fedpgp import methods
from fedpgp.core.errors import ConfigError
from fedpgp.methods.base import Batch

PLAIN = methods.create("promptfl", {"n_ctx": 3})


def create(**given):
    return methods.create("kgcoop", {"n_ctx": 3, **given})


def test_w_0_is_promptfl_bit_for_bit(bind, features, labels):
    frozen, images = bind(PLAIN), features["pooled"]
    plain, neutral = (train(method, frozen, images, labels) for method in (PLAIN, create(w=0)))
    assert torch.equal(plain.params["ctx"], neutral.params["ctx"])
    assert torch.equal(plain.loss, neutral.loss)


def test_the_term_by_hand():
    """Cosines 3/5 and 4/5 of two classes: L_kg = 0.3. The image is orthogonal to both classes: L_ce = log 2."""
    z, t = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]]), torch.tensor([[3.0, 4.0, 0.0], [3.0, 4.0, 0.0]])
    frozen = SimpleNamespace(encode=lambda ctx, position: ctx, template=lambda: t, logit_scale=7.0)
    image = Batch(torch.tensor([[[0.0, 0.0, 5.0]]]), torch.tensor([[1]]), torch.tensor([[True]]))
    loss, parts = create(w=2).loss({"ctx": z}, {}, frozen, image)
    assert parts["ce"].item() == pytest.approx(0.693147, abs=1e-6)
    assert parts["kg"].item() == pytest.approx(0.3, abs=1e-6)
    assert loss.item() == pytest.approx(0.693147 + 0.6, abs=1e-6)


def test_the_hand_written_prompt_has_no_term_and_no_gradient_of_it(bind, features, labels):
    """The words of `data.template` in front of the name are that prompt."""
    method = create(ctx_init="a photo of a")
    frozen = bind(method)
    params, received = distinct_params(method, frozen)
    own = learned(params)
    _, parts = method.loss(own, received, frozen, batch(features["pooled"], labels))
    torch.testing.assert_close(parts["kg"], torch.zeros(3), atol=1e-6, rtol=0)
    assert gradients(parts["kg"], own)["ctx"].abs().max() < 1e-5
    _, moved = method.loss({"ctx": params["ctx"].flip(1)}, received, frozen, batch(features["pooled"], labels))
    assert moved["kg"].min() > 1e-3


def test_a_negative_weight_is_rejected():
    with pytest.raises(ConfigError, match=r"method kgcoop: w: .*greater than or equal to 0 .given: -1"):
        create(w=-1)
