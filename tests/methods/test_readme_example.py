"""The example method in the README works unchanged."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from three_clients import batch, distinct_params

from fedpgp import methods
from fedpgp.methods.fedpgp import FedPGPSettings

README = Path(__file__).parents[2] / "README.md"


def test_the_example_adds_its_penalty(bind, features, labels):
    section = README.read_text(encoding="utf-8").split("## Your method", 1)[1].split("\n## ", 1)[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    namespace: dict[str, type] = {}
    exec(code, namespace)
    settings = FedPGPSettings(n_ctx=3, rank=2)
    plain, sparse = methods.create("fedpgp", settings.model_dump()), namespace["SparseFedPGP"](settings)
    frozen = bind(plain)
    params, received = distinct_params(plain, frozen)
    images = batch(features["pooled"], labels)
    penalty = 0.01 * (params["U"] @ params["V"]).abs().flatten(1).sum(1)
    difference = sparse.loss(params, received, frozen, images)[0] - plain.loss(params, received, frozen, images)[0]
    assert penalty.min() > 0
    torch.testing.assert_close(difference, penalty, atol=1e-5, rtol=0)
