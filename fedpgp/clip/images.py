"""Encodes images: decoded images to seeded views to features."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpgp.clip.feature_cache import Array, FeatureKey, Variant, write_shard
from fedpgp.clip.model import ImageSpec
from fedpgp.core.errors import BackboneError
from fedpgp.core.seeding import derive_seed
from fedpgp.data.exif import orientation

if TYPE_CHECKING:
    from PIL.Image import Image

    from fedpgp.data.sources.base import Reader

BATCH = 64  # images per forward pass
AHEAD = 2  # batches decoded in advance


class Encoder:
    """Encodes images of a manifest into shards of features."""

    def __init__(self, visual: nn.Module, spec: ImageSpec, source: Reader, key: FeatureKey) -> None:
        """Create an encoder; raise `BackboneError` if the tower lacks the patch tokens that the key requires."""
        if key.variant == "patches":
            check_patches(visual)
        self._visual, self._spec, self._source, self._key = visual, spec, source, key
        self._crop = _evaluation_crop(spec)

    def encode_chunk(self, table: pa.Table, rows: Array, shard: Path) -> int:
        """Encode the images of `table`, the manifest's rows `rows` (n,), into one shard.

        Returns how many of them have an EXIF orientation, which is not applied.
        """
        variant, dtype = self._key.variant, self._key.dtype
        parts, rotated = [], 0
        for pixels, own_rotated in self._decoded(table, rows):
            encoded = encode(self._visual, self._spec, pixels.flatten(0, 1), variant, dtype)
            parts.append(encoded.unflatten(0, pixels.shape[:2]))
            rotated += own_rotated
        write_shard(shard, self._key, rows, torch.cat(parts).numpy())
        return rotated

    def _decoded(self, table: pa.Table, rows: Array) -> Iterator[tuple[Tensor, int]]:
        """Yield uint8 (n, views, 3, H, W) of `BATCH` images at a time, and how many have an EXIF orientation.

        One thread decodes the next `AHEAD` batches while the tower runs (Pillow and the disk release the interpreter
        lock). It is a single thread because torchvision draws views from torch's global generator.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="decode") as decoder:
            waiting: deque[Future[tuple[Tensor, int]]] = deque()
            for start in range(0, len(rows), BATCH):
                part = slice(start, start + BATCH)
                waiting.append(decoder.submit(self._pixels, table[part], rows[part]))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _pixels(self, table: pa.Table, rows: Array) -> tuple[Tensor, int]:
        """Compute uint8 (n, views, 3, H, W). A random view depends on the seed, the row and its number only."""
        key, pixels, rotated = self._key, [], 0
        for image, row in zip(self._source.read(table), rows, strict=True):
            rotated += orientation(image) != 1
            if key.views == 1:
                pixels.append(self._crop(image)[None])
            else:
                seeds = [derive_seed(key.seed, "view", int(row), view) for view in range(key.views)]
                pixels.append(torch.stack([_random_view(image, self._spec.size, seed) for seed in seeds]))
        return torch.stack(pixels), rotated


def cropped(images: Iterable[Image], spec: ImageSpec) -> Tensor:
    """Crop images with the evaluation transform, uint8 (n, 3, H, W)."""
    crop = _evaluation_crop(spec)
    return torch.stack([crop(image) for image in images])


@torch.inference_mode()
def encode(visual: nn.Module, spec: ImageSpec, pixels: Tensor, variant: Variant, dtype: str) -> Tensor:
    """Encode cropped images, uint8 (n, 3, H, W), to cached features (n, *shape) on the CPU."""
    if variant == "pixels":
        return pixels
    device = next(visual.parameters()).device
    parts = []
    for batch in torch.split(pixels, BATCH):
        inputs = normalise(batch.to(device), spec)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            encoded = patch_tokens(visual, inputs) if variant == "patches" else visual(inputs)
        parts.append(encoded.float().cpu())
    return torch.cat(parts)


def normalise(pixels: Tensor, spec: ImageSpec) -> Tensor:
    """Normalize cached pixels, uint8 (..., 3, H, W), to inputs of the image tower, float32 of the same shape."""
    mean, std = _channels(spec, pixels.device)
    return (pixels.float() / 255 - mean) / std


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _channels(spec: ImageSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (3, 1, 1); cached, so that a step does not wait until they are copied to its GPU."""
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (spec.mean, spec.std))
    return mean, std


def _evaluation_crop(spec: ImageSpec) -> Callable[[Image], Tensor]:
    """Create open_clip's evaluation transform up to the crop, uint8 (3, H, W), without normalization."""
    from open_clip import image_transform
    from torchvision.transforms import Compose, PILToTensor

    options = {"mean": spec.mean, "std": spec.std, "resize_mode": spec.resize_mode}
    whole = image_transform(spec.size, is_train=False, interpolation=spec.interpolation, **options)
    crop: Callable[[Image], Tensor] = Compose([*whole.transforms[:-2], PILToTensor()])
    return crop


def _random_view(image: Image, size: int, seed: int) -> Tensor:
    """Apply the authors' augmentation (bicubic random resized crop, flip) with a given seed, uint8 (3, H, W)."""
    from torchvision.transforms import InterpolationMode, RandomHorizontalFlip, RandomResizedCrop
    from torchvision.transforms.functional import pil_to_tensor

    crop = RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=InterpolationMode.BICUBIC)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.default_generator.manual_seed(seed)
        view: Tensor = pil_to_tensor(RandomHorizontalFlip()(crop(image)))
    return view


def check_patches(visual: nn.Module) -> None:
    """Raise `BackboneError` if an image tower is neither a plain ViT nor a ResNet with attention pooling."""
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, ModifiedResNet) or (isinstance(visual, VisionTransformer) and visual.attn_pool is None):
        return
    raise BackboneError(
        "patch features need a plain ViT or a ResNet of open_clip, such as ViT-B-16-quickgelu or RN50-quickgelu, "
        f"not an image tower of type {type(visual).__name__}"
    )


def patch_tokens(visual: Any, images: Tensor) -> Tensor:
    """Compute all tokens in the joint space, (n, 1 + M, E), of normalized images; the first is the pooled feature.

    ViT: class token and patches after the last block. ResNet: attention pooling of the mean and of each position of
    the last feature map, as in FedOTP's code.
    """
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, VisionTransformer):
        last = visual.forward_intermediates(
            images,
            indices=1,
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        tokens = torch.cat([last["image_intermediates_prefix"][0], last["image_intermediates"][0]], dim=1)
        projected: Tensor = tokens @ visual.proj
        return projected
    pool = visual.attnpool
    (last,) = visual.forward_intermediates(images, indices=1, intermediates_only=True)["image_intermediates"]
    places = last.flatten(2).mT
    x = torch.cat([places.mean(1, keepdim=True), places], dim=1) + pool.positional_embedding
    heads = (layer(x).unflatten(-1, (pool.num_heads, -1)) for layer in (pool.q_proj, pool.k_proj, pool.v_proj))
    q, k, v = (part.transpose(1, 2) for part in heads)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
    pooled: Tensor = pool.c_proj(mixed)
    return pooled
