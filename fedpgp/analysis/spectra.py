"""Analyses of the LoRA paper: overlap of a change with the weights, and spectra of matrices."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Overlap:
    """Projections of a frozen weight W on the directions of its change (Hu et al., 2022, table 7)."""

    delta: float
    """||U^T W V||_F with the top singular directions U, V of the change dW"""
    weight: float
    """the same with those of W itself: the upper bound"""
    random: float
    """the same with those of a random matrix: the value for unrelated directions"""
    weight_norm: float
    """||W||_F"""
    delta_norm: float
    """||dW||_F"""

    @property
    def amplification(self) -> float:
        """||dW||_F over ||U^T W V||_F: the factor by which the change amplifies its directions in W."""
        return self.delta_norm / self.delta


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a matrix (the last two axes of a stack)."""

    values: Tensor  # (..., min(M, N)), descending

    def energy(self, rank: int) -> Tensor:
        """Share (...) of the squared Frobenius norm in the best approximation of this rank; 0 for a zero matrix."""
        squares = self.values.double().square()
        total = squares.sum(-1)
        return squares[..., :rank].sum(-1) / torch.where(total > 0, total, 1)

    def effective_rank(self, share: float = 0.9) -> Tensor:
        """The smallest rank (...) with at least this share of the energy."""
        ranks = torch.stack([self.energy(rank) for rank in range(1, self.values.shape[-1] + 1)], dim=-1)
        return (ranks < share).sum(-1) + 1


def overlap(weight: Tensor, delta: Tensor, rank: int, generator: torch.Generator) -> Overlap:
    """Project W (M, N) on the top-`rank` singular directions of dW, of W and of a random matrix, all (M, N).

    Args:
        generator: draws the random matrix.

    Raises:
        ValueError: different shapes, or a rank that they cannot have.
    """
    if weight.shape != delta.shape or not 1 <= rank <= min(weight.shape):
        given = f"weight {tuple(weight.shape)}, delta {tuple(delta.shape)}"
        raise ValueError(f"{given}: need matrices of one shape that can have rank {rank}")
    weight, delta = weight.double(), delta.double()
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return Overlap(
        delta=_projected(weight, delta, rank),
        weight=_projected(weight, weight, rank),
        random=_projected(weight, noise, rank),
        weight_norm=float(weight.norm()),
        delta_norm=float(delta.norm()),
    )


def spectrum(delta: Tensor) -> Spectrum:
    """Singular values of matrices (..., M, N), for example of personal parts of prompts (L, D)."""
    return Spectrum(torch.linalg.svdvals(delta.double()))


def _projected(weight: Tensor, directions: Tensor, rank: int) -> float:
    """||U^T W V||_F."""
    u, _, vh = torch.linalg.svd(directions, full_matrices=False)
    return float((u[:, :rank].T @ weight @ vh[:rank].T).norm())
