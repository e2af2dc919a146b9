"""A small CLIP for the methods, and the images of three clients in every form."""

from __future__ import annotations

import pytest
import torch
from three_clients import COUNTS, NAMES

from fedpgp.clip import model
from fedpgp.clip.images import normalise, patch_tokens
from fedpgp.clip.text_backbone import freeze
from fedpgp.config import BackboneSettings


@pytest.fixture(scope="session")
def backbone():
    return model.load(BackboneSettings(name="tiny", weights="random"))


@pytest.fixture(scope="session")
def bind(backbone):
    """The frozen model as a method requires it."""

    def bound(method, names=NAMES, dtype=torch.float32):
        frozen = freeze(
            backbone, names, "a photo of a {}.", method.extra_texts, visual="image" in method.required_towers
        )
        return frozen.to("cpu", dtype).on(range(len(names)))

    return bound


@pytest.fixture(scope="session")
def features(backbone):
    """The images of all clients, one after another, in each form that a method can require."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (sum(COUNTS), 3, 32, 32), generator=generator, dtype=torch.uint8)
    visual, inputs = backbone.model.visual, normalise(pixels, backbone.image)
    with torch.no_grad():
        return {"pooled": visual(inputs), "patches": patch_tokens(visual, inputs), "pixels": pixels}


@pytest.fixture(scope="session")
def labels():
    return torch.arange(sum(COUNTS)) % len(NAMES)
