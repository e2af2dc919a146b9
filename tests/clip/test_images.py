"""Images to features: equal to open_clip's own path, views seeded by row, nothing left behind by a bad image."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from PIL import Image

from fedpgp.clip import images
from fedpgp.clip.feature_cache import FeatureCache, FeatureKey
from fedpgp.clip.images import Encoder, normalise, patch_tokens
from fedpgp.clip.model import load
from fedpgp.config import BackboneSettings
from fedpgp.core.errors import BackboneError, DataError

ROOT = Path(__file__).parents[2]
SIZES = [(50, 40), (32, 32), (20, 31), (200, 90), (33, 64), (31, 31)]


def picture(row):
    width, height = SIZES[row % len(SIZES)]
    noise = np.random.default_rng(row).integers(0, 256, (height, width, 3))
    return Image.fromarray((noise // 2 + 100 * (row % 2)).astype(np.uint8))


class Reader:
    """Pictures by their number, some of them broken."""

    def __init__(self, broken=()):
        self.broken = broken

    def read(self, table):
        for row in table["number"].to_pylist():
            if row in self.broken:
                raise DataError(f"picture {row}: truncated")
            yield picture(row)


@pytest.fixture(scope="module")
def backbone():
    return load(BackboneSettings(name="tiny", weights="random"))


@pytest.fixture
def key(backbone):
    return FeatureKey("m", backbone.fingerprint, backbone.image.digest)


@pytest.fixture
def encode(backbone, tmp_path):
    """rows, key -> features (n, views, *shape)."""

    def run(rows, key, spec=backbone.image, broken=()):
        shard = tmp_path / f"{key.digest}.arrow"
        rotated = Encoder(backbone.model.visual, spec, Reader(broken), key).encode_chunk(
            pa.table({"number": rows}), np.array(rows), shard
        )
        assert rotated == 0
        cache = FeatureCache.open(shard, key)
        return np.stack([cache.gather(np.array(rows), view) for view in range(key.views)], axis=1)

    return run


def test_one_view_is_open_clips_evaluation_transform_and_tower(encode, backbone, key):
    transform = open_clip.image_transform(32, is_train=False)
    inputs = torch.stack([transform(picture(row)) for row in range(6)])
    pooled = encode(range(6), key)
    assert pooled.dtype == np.float32
    assert pooled.shape == (6, 1, 64)
    assert np.array_equal(pooled[:, 0], backbone.model.encode_image(inputs).numpy())


@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_the_transform_before_normalisation(encode, backbone, key, resize_mode, interpolation):
    spec = replace(backbone.image, resize_mode=resize_mode, interpolation=interpolation, mean=(0.5, 0.4, 0.3))
    pixels = encode(range(6), replace(key, transform=spec.digest, variant="pixels"), spec)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (6, 1, 3, 32, 32)
    transform = open_clip.image_transform(
        32, is_train=False, mean=spec.mean, resize_mode=resize_mode, interpolation=interpolation
    )
    expected = torch.stack([transform(picture(row)) for row in range(6)])
    assert torch.equal(normalise(torch.from_numpy(pixels[:, 0]), spec), expected)


def test_patches_are_every_token_after_norm_and_projection(encode, backbone, key):
    visual = backbone.model.visual
    transform = open_clip.image_transform(32, is_train=False)
    inputs = torch.stack([transform(picture(row)) for row in range(3)])
    hidden = visual.transformer(visual._embeds(inputs))
    expected = visual.ln_post(hidden) @ visual.proj
    patches = encode(range(3), replace(key, variant="patches"))[:, 0]
    assert patches.shape == (3, 17, 64)
    assert np.allclose(patches, expected.numpy(), atol=1e-5)
    assert np.allclose(patches[:, 0], encode(range(3), key)[:, 0], atol=1e-5)  # the class token is the pooled feature


def resnet_tower():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ModifiedResNet([1, 1, 1, 1], output_dim=24, heads=4, image_size=64, width=8).eval()


def test_patches_of_a_resnet_are_all_outputs_of_its_attention_pooling():
    """As FedOTP's RN50: the mean's token is the pooled feature; each place is checked by asking with it."""
    visual, images = resnet_tower(), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    pool = visual.attnpool
    with torch.no_grad():
        tokens = patch_tokens(visual, images)
        assert tokens.shape == (2, 1 + 4, 24)
        assert torch.allclose(tokens[:, 0], visual(images), atol=1e-5)
        (places,) = visual.forward_intermediates(images, indices=1, intermediates_only=True)["image_intermediates"]
        places = places.flatten(2).permute(2, 0, 1)
        keys = torch.cat([places.mean(0, keepdim=True), places]) + pool.positional_embedding[:, None]
        for place in range(5):
            attended, _ = torch.nn.functional.multi_head_attention_forward(
                keys[place : place + 1], keys, keys, 256, 4, None,
                torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]), None, None, False, 0.0,
                pool.c_proj.weight, pool.c_proj.bias, need_weights=False, use_separate_proj_weight=True,
                q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight,
            )  # fmt: skip
            assert torch.allclose(tokens[:, place], attended[0], atol=1e-5)


def test_patches_need_a_tower_that_has_them(backbone, key):
    with pytest.raises(BackboneError, match=r"patch features need a plain ViT or a ResNet.*of type Linear"):
        Encoder(torch.nn.Linear(1, 1), backbone.image, Reader(), replace(key, variant="patches"))


def test_views_are_a_function_of_seed_row_and_number(encode, key):
    key = replace(key, views=3, seed=11, variant="pixels")
    before = torch.get_rng_state()
    views = encode([0, 1, 2, 3], key)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(encode([2, 3], key), views[2:])  # whatever else is in the chunk
    assert len({view.tobytes() for view in views.reshape(12, -1)}) == 12
    assert not (encode([0, 1, 2, 3], replace(key, seed=12)) == views).all(axis=(2, 3, 4)).any()
    assert np.array_equal(encode([0, 1], replace(key, views=5))[:, :3], views[:2])  # more views keep the first ones


def test_views_crop_and_flip(backbone, key, tmp_path):
    """A picture of its own x coordinate: a view shows a part of the range, rising or (flipped) falling."""

    class Ramp:
        def read(self, table):
            ramp = np.broadcast_to(np.arange(128, dtype=np.uint8)[None, :, None] * 2, (128, 128, 3))
            return iter([Image.fromarray(np.ascontiguousarray(ramp))])

    key = replace(key, views=40, seed=1, variant="pixels")
    Encoder(backbone.model.visual, backbone.image, Ramp(), key).encode_chunk(
        pa.table({"number": [0]}), np.array([0]), tmp_path / "ramp.arrow"
    )
    cache = FeatureCache.open(tmp_path / "ramp.arrow", key)
    spans = [np.subtract(*map(int, cache.gather(np.array([0]), view)[0, 0, 16, [-2, 1]])) for view in range(40)]
    flipped = sum(span < 0 for span in spans)
    assert 10 <= flipped <= 30
    assert min(map(abs, spans)) < 120 < 200 < max(map(abs, spans))


def test_bfloat16_towers_give_nearly_the_same_in_float32(encode, key):
    exact, rough = encode(range(4), key), encode(range(4), replace(key, dtype="bfloat16"))
    assert rough.dtype == np.float32
    assert not np.array_equal(exact, rough)
    assert np.allclose(exact, rough, atol=0.03 * np.abs(exact).max())


def test_a_bad_image_leaves_no_shard(encode, key, tmp_path):
    with pytest.raises(DataError, match="picture 2: truncated"):
        encode([1, 2, 3], key, broken={2})
    assert list(tmp_path.iterdir()) == []


def test_the_next_batches_are_decoded_while_the_tower_works_and_no_more_than_those(
    backbone, key, tmp_path, monkeypatch
):
    """10 pictures, two at a time: while the tower has the first two, four more are decoded, and then it waits."""
    monkeypatch.setattr(images, "BATCH", 2)
    monkeypatch.setattr(images, "AHEAD", 2)
    read, seen, enough = [], [], threading.Event()

    class Counting(Reader):
        def read(self, table):
            for row in table["number"].to_pylist():
                read.append(row)
                if len(read) == 6:
                    enough.set()
                yield picture(row)

    class Slow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tower = backbone.model.visual

        def forward(self, pixels):
            assert enough.wait(10)
            time.sleep(0.05)
            seen.append(len(read))
            return self.tower(pixels)

    rows = np.arange(10)
    Encoder(Slow(), backbone.image, Counting(), key).encode_chunk(
        pa.table({"number": rows}), rows, tmp_path / "shard.arrow"
    )
    assert seen[0] == 6
    assert all(count <= most for count, most in zip(seen, [6, 8, 10, 10, 10], strict=True))
    assert read == rows.tolist()
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]
    assert threads == []
    whole = torch.stack([open_clip.image_transform(32, is_train=False)(picture(row)) for row in rows])
    found = FeatureCache.open(tmp_path / "shard.arrow", key).gather(rows)
    assert np.allclose(found, backbone.model.encode_image(whole).numpy(), atol=1e-6)


def test_patches_equal_the_references_visual_tokens(key, golden_folder):
    with np.load(golden_folder / "base.npz") as base, np.load(golden_folder / "fedotp.npz") as fedotp:
        state = {name[10:]: torch.tensor(base[name]) for name in base if name.startswith("sd/visual.")}
        pictures, expected = torch.tensor(fedotp["images"]), fedotp["visual_tokens_all"]
    visual = open_clip.model.CLIP(
        state["proj"].shape[1],
        {
            "image_size": pictures.shape[-1],
            "patch_size": state["conv1.weight"].shape[-1],
            "width": state["proj"].shape[0],
            "layers": sum("in_proj_weight" in name for name in state),
        },
        {"width": 64, "heads": 1, "layers": 1},
        quick_gelu=True,
    ).visual.eval()
    visual.load_state_dict(state)
    with torch.inference_mode():
        assert np.allclose(patch_tokens(visual, pictures).numpy(), expected, atol=1e-5)
