"""The model in the package: loads as a stock CLIP, its tokens, and that it behaves like a small CLIP."""

from __future__ import annotations

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file

from fedpgp.clip.images import cropped, encode
from fedpgp.clip.model import (
    ICON_CLIP,
    ICON_CLIP_FOLDER,
    ICON_CLIP_WEIGHTS,
    Backbone,
    load,
    read_config,
)
from fedpgp.clip.text_backbone import freeze
from fedpgp.clip.tokens import PAD, START, UNKNOWN
from fedpgp.config import BackboneSettings, DataSettings
from fedpgp.core.errors import BackboneError
from fedpgp.data import manifest
from fedpgp.data.sources import open_source

TEMPLATE = "an icon of a {}."


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load(BackboneSettings(name="icon-clip", weights=None))


@pytest.fixture(scope="module")
def sample(backbone):
    """Normalised features and labels of test pictures, every fifth of them, and the class names."""
    icons = manifest.build(DataSettings(name="icons"))
    rows = np.flatnonzero(icons.splits == "test")[::5]
    pictures = open_source(DataSettings(name="icons")).read(icons.table.take(pa.array(rows)))
    features = encode(backbone.model.visual, backbone.image, cropped(pictures, backbone.image), "pooled", "float32")
    return F.normalize(features, dim=-1), torch.from_numpy(icons.labels[rows]).long(), icons.class_names


def text_features(backbone, texts):
    return F.normalize(backbone.model.encode_text(backbone.tokenize(texts)), dim=-1)


def test_the_files_are_a_stock_open_clip_model(backbone):
    config = read_config(ICON_CLIP)[0]
    stock = open_clip.CLIP(**config).eval()
    stock.load_state_dict({name: value.float() for name, value in load_file(ICON_CLIP_WEIGHTS).items()})
    pictures = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = backbone.tokenize(["an icon of a car.", "a rainbow"])
    with torch.no_grad():
        torch.testing.assert_close(stock.encode_image(pictures), backbone.model.encode_image(pictures))
        torch.testing.assert_close(stock.encode_text(tokens), backbone.model.encode_text(tokens))


def test_weights_are_stored_in_half_precision_and_fingerprinted(backbone):
    stored = load_file(ICON_CLIP_WEIGHTS)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    card = (ICON_CLIP_FOLDER.parent / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"`{backbone.fingerprint}`" in card


def test_tokens_are_clips_with_the_end_highest(backbone):
    row = backbone.tokenize(["an icon of a car."])[0].tolist()
    end = read_config(ICON_CLIP)[0]["text_cfg"]["vocab_size"] - 1
    assert row[0] == START
    assert row.index(end) == 1 + len(SimpleTokenizer().encode("an icon of a car."))
    assert set(row[row.index(end) + 1 :]) == {PAD}
    assert max(row) == end == backbone.tokenize.end


def test_unknown_tokens_share_one_id(backbone):
    rows = backbone.tokenize(["quokka", "an icon"])
    assert UNKNOWN in rows[0]
    assert UNKNOWN not in rows[1]


def test_long_texts_are_cut(backbone):
    row = backbone.tokenize(["car " * 100])[0]
    assert len(row) == 32
    assert row[-1] == backbone.tokenize.end


def test_all_class_names_are_known(backbone, sample):
    tokens = backbone.tokenize([TEMPLATE.format(name) for name in sample[2]])
    assert not (tokens == UNKNOWN).any()


def test_sixteen_context_tokens_fit(backbone, sample):
    bound = freeze(backbone, sample[2], TEMPLATE, ["X"]).on(range(80))
    assert bound.encode(torch.zeros(1, 16, bound.width)).shape == (1, 80, 128)


def test_zero_shot_is_decent_and_not_saturated(backbone, sample):
    features, labels, names = sample
    for half in (labels < 40, labels >= 40):
        own = sorted(set(labels[half].tolist()))
        table = text_features(backbone, [TEMPLATE.format(names[label]) for label in range(80)])
        keep = torch.arange(40) + (0 if own[0] < 40 else 40)
        right = (features[half] @ table[keep].T).argmax(1) + keep[0] == labels[half]
        assert 0.35 < right.float().mean() < 0.8


def test_the_text_tower_listens_to_its_context(backbone, sample):
    features, labels, names = sample
    tables = [text_features(backbone, [t.format(name) for name in names]) for t in (TEMPLATE, "a rotate icon of a {}.")]
    neutral, told = ((features @ table.T).argmax(1).eq(labels).float().mean() for table in tables)
    assert told > neutral + 0.05


@pytest.mark.parametrize("weights", ["random", "openai", "file.pt"])
def test_it_brings_its_own_weights(weights):
    with pytest.raises(BackboneError, match=r"backbone.weights: icon-clip includes weights; give null"):
        load(BackboneSettings(name="icon-clip", weights=weights))


def test_another_activation_is_refused():
    with pytest.raises(BackboneError, match=r"backbone.activation: icon-clip was trained with gelu"):
        load(BackboneSettings(name="icon-clip", weights=None, activation="quick_gelu"))
