"""The tolerances of the golden sets, in one place."""

from __future__ import annotations

import numpy as np
import torch


def _array(value: torch.Tensor | np.ndarray | float) -> np.ndarray:
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def same_logits(actual: torch.Tensor, reference: np.ndarray) -> None:
    """Logits, losses and features."""
    np.testing.assert_allclose(_array(actual), reference, atol=5e-5, rtol=0)


def same_gradient(actual: torch.Tensor, reference: np.ndarray) -> None:
    np.testing.assert_allclose(_array(actual), reference, atol=3e-5, rtol=1e-4)


def same_params(actual: torch.Tensor, reference: np.ndarray) -> None:
    np.testing.assert_allclose(_array(actual), reference, atol=5e-6, rtol=0)
