"""Overlap of a change with a weight, and spectra: numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from fedpgp.analysis.spectra import overlap, spectrum

WEIGHT = torch.diag(torch.tensor([3.0, 4.0, 12.0]))


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
    found = spectrum(torch.tensor([[0.0, 3.0], [4.0, 0.0]]))
    assert found.values.tolist() == pytest.approx([4, 3])
    assert [found.energy(rank).item() for rank in (0, 1, 2)] == pytest.approx([0, 0.64, 1])
    assert [found.effective_rank(share).item() for share in (0.6, 0.9)] == [1, 2]


def test_spectra_of_a_stack_of_prompts():
    """A product of rank 2, a matrix of equal singular values, and one that learned nothing."""
    u, v = (torch.randn(*shape, generator=generator()) for shape in ((4, 2), (2, 6)))
    found = spectrum(torch.stack([u @ v, torch.eye(4, 6), torch.zeros(4, 6)]))
    assert found.values.shape == (3, 4)
    assert found.energy(2).tolist() == pytest.approx([1, 0.5, 0])
    assert found.effective_rank(0.999).tolist()[1] == 4
    assert found.effective_rank(0.999).tolist()[0] <= 2
