"""The authors' numbers, read from the folder FEDPGP_GOLDEN (default tests/golden), and the tiny CLIP they belong to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedpgp.clip.model import Backbone, ImageSpec
from fedpgp.clip.text_backbone import ClassSet, freeze

TEMPLATE = "a photo of a {}."

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def golden(golden_folder: Path) -> Callable[[str], Arrays]:
    cache: dict[str, Arrays] = {}

    def read(name: str) -> Arrays:
        if name not in cache:
            with np.load(golden_folder / f"{name}.npz") as arrays:
                cache[name] = dict(arrays)
        return cache[name]

    return read


@pytest.fixture(scope="session")
def settings(golden_folder: Path) -> dict[str, Any]:
    """The set's config.json."""
    return json.loads((golden_folder / "config.json").read_text())


@pytest.fixture(scope="session")
def backbone(golden: Callable[[str], Arrays], settings: dict[str, Any]) -> Backbone:
    from open_clip.model import CLIP
    from open_clip.tokenizer import SimpleTokenizer

    config = settings["open_clip_model_cfg"]
    clip = CLIP(**config)
    state = {key[3:]: torch.from_numpy(value) for key, value in golden("base").items() if key.startswith("sd/")}
    clip.load_state_dict(state)
    clip.eval().requires_grad_(False)
    return Backbone(
        name="golden",
        model=clip,
        image=ImageSpec(config["vision_cfg"]["image_size"], (0.0,) * 3, (1.0,) * 3, "bicubic", "shortest"),
        tokenize=SimpleTokenizer(context_length=config["text_cfg"]["context_length"]),
        logit_scale=float(clip.logit_scale.exp()),
        activation="quick_gelu",
        fingerprint="golden",
    )


@pytest.fixture(scope="session")
def class_set(backbone: Backbone) -> Callable[..., ClassSet]:
    """The frozen text side for some class names."""

    def bind(
        names: Sequence[str], extra_texts: Sequence[str] = ("X",), class_chunk: int | None = None, visual: bool = False
    ) -> ClassSet:
        names = [str(name) for name in names]
        return freeze(backbone, names, TEMPLATE, extra_texts, class_chunk, visual).on(range(len(names)))

    return bind
