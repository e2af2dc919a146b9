"""A block as one batch gives the same numbers as one client at a time, with fewer launches."""

from __future__ import annotations

import json

import torch

from fedpgp.bench import clients as bench
from fedpgp.bench.workload import one_batch


def test_a_block_gives_the_gradients_of_single_clients(workload):
    """The first client of a block of two equals the client of a block of one."""
    frozen, method, params = workload.on_base(), workload.method, workload.params(2)
    features, labels = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1)), torch.arange(10).view(2, 5)

    def gradients(chosen):
        tree = {key: value[chosen].detach().requires_grad_() for key, value in params.items()}
        loss, _ = method.loss(tree, {}, frozen, one_batch(features[chosen], labels[chosen]))
        return torch.autograd.grad(loss.sum(), list(tree.values()))

    together, *alone = gradients(slice(None)), gradients(slice(0, 1)), gradients(slice(1, 2))
    for both, one, other in zip(together, *alone, strict=True):
        torch.testing.assert_close(both, torch.cat([one, other]), atol=1e-6, rtol=1e-4)


def test_launches_of_one_product_and_its_gradient():
    """x @ w, its sum; backward: a one, its expansion is a view, one product."""
    x, w = torch.ones(2, 3, requires_grad=True), torch.ones(3, 4)
    step = lambda: torch.autograd.grad((x @ w).sum(), x)  # noqa: E731
    assert bench.launches(step) == 4


def test_figures(workload):
    outcome = bench.measure(1, lambda what: None, workload)
    found = json.loads(outcome.as_json())
    assert (found["bench"], set(found["figures"])) == ("clients", {"ratio_block_to_single", "kernels_per_client_step"})
    single, *_, whole = outcome.rows
    assert (single[0], whole[0]) == ("1", "10")
    assert int(whole[3]) < int(single[3]) / 5
