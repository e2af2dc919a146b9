"""Numbers of parameters on ViT-B/16, counted by hand from the papers' shapes."""

from __future__ import annotations

import pytest

from fedpgp import methods
from fedpgp.methods.size import parameter_counts


@pytest.mark.parametrize(
    ("name", "shared", "personal"),
    [
        ("zero_shot", 0, 0),
        ("coop", 0, 16 * 512),
        ("promptfl", 16 * 512, 0),
        ("prompt_prox", 16 * 512, 0),
        ("fedcocoop", 16 * 512 + 512 * 32 + 32 + 32 * 512 + 512, 0),
        ("fedmaple", 9 * (2 * 512 + 512 * 768 + 768), 0),
        ("dp_fpl", 16 * 512, 16 * 512),
        ("fedmgp", 2 * (2 * 512 + 2 * 768), 5 * (2 * 512 + 2 * 768) + 2 * 2),
        ("fedotp", 16 * 512, 16 * 512),
        ("fedpgp", 16 * 512, 16 * 8 + 8 * 512),
        ("kgcoop", 16 * 512, 0),
        ("prograd", 16 * 512, 0),
        ("promptfolio", 16 * 512, 16 * 512),
        ("fedpha", 16 * 512, 16 * 512),
        ("fedtpg", 4 * 512 + 3 * 1024 + 4 * (512**2 + 512) + 4096 * 513 + 512 * 2049, 0),
        ("pfedmoap", 16 * 512, 4 * (128 * 128 + 128)),
    ],
)
def test_shared_and_personal_parameters(name, shared, personal):
    assert parameter_counts(methods.create(name, {})) == (shared, personal)
