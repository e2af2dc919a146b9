"""A tiny model in place of ViT-B/16."""

from __future__ import annotations

import pytest
import torch

from fedpgp.bench.workload import BASE, NOVEL, Workload
from fedpgp.clip import model
from fedpgp.config import BackboneSettings


@pytest.fixture(scope="session")
def workload():
    return Workload(model.load(BackboneSettings(name="tiny", weights="random")), BASE[20:40], NOVEL[:3], n_ctx=4)


@pytest.fixture(autouse=True)
def threads():
    """Restore torch's threads, which benches set."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
