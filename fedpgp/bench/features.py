"""Measure extraction against the bare image tower, two actors against one, and the feature cache against Parquet."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from fedpgp.bench.measurement import Measurement, Report, alternated, seconds
from fedpgp.bench.workload import vit_b_16
from fedpgp.clip import feature_cache, images
from fedpgp.clip.feature_cache import Array, Chunk, FeatureCache, FeatureKey, write_shard
from fedpgp.clip.model import Backbone
from fedpgp.config import DataSettings, ResourceSettings
from fedpgp.core.errors import FedPGPError
from fedpgp.core.seeding import numpy_generator
from fedpgp.data.manifest import build
from fedpgp.data.sources import open_source
from fedpgp.federation.backends import ray_cluster
from fedpgp.federation.backends.actors import ActorPool
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.extraction import ExtractionJob
from fedpgp.federation.resources import keep_freed_memory

PHOTOS, PHOTO_SIZE, CHUNK = 96, (500, 375), 8
REPEATS = 3
ROWS, WIDTH, BATCH, GROUP = 100_000, 512, 32, 64
OPENINGS, BATCHES = 50, 50


def photograph(folder: Path, count: int, backbone: Backbone) -> ExtractionJob:
    """Write JPEGs of coarse and fine noise, about as large as files of real photos; the job of encoding them."""
    generator = numpy_generator(1, "photos")
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3)).astype(np.uint8)).resize(PHOTO_SIZE)
        fine = generator.normal(0, 8, (*reversed(PHOTO_SIZE), 3))
        path = folder / f"class {number % 2}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)).save(path, quality=90)
    data = DataSettings(name="folder", root=folder)
    manifest, visual = build(data), backbone.model.visual
    key = FeatureKey(manifest.files_digest, backbone.fingerprint, backbone.image.digest)
    return ExtractionJob(visual, backbone.image, data, manifest, key)  # type: ignore[arg-type]


def extraction(job: ExtractionJob, threads: int, repeats: int) -> tuple[float, float]:
    """Median seconds of the bare tower on pixels in memory, and of a whole extraction.

    The extraction is that of `fedpgp features`: read, decode, encode, write shards, merge them.
    """
    backend, rows = SerialBackend(threads), np.arange(len(job.manifest))
    pixels = images.cropped(list(open_source(job.data).read(job.manifest.table)), job.image)

    def bare() -> None:
        images.encode(job.visual, job.image, pixels, "pooled", "float32")

    def run_chunks(chunks: list[Chunk]) -> Iterator[Chunk]:
        backend.load(job)
        return backend.map("encode_chunk", chunks)

    def whole() -> None:
        with tempfile.TemporaryDirectory() as folder:
            feature_cache.extract(Path(folder), job.key, rows, run_chunks, lambda done, total: None)

    images.encode(job.visual, job.image, pixels[:2], "pooled", "float32")  # warm-up
    tower, extracted = alternated(repeats, bare, whole)
    backend.close()
    return tower, extracted


def actors(job: ExtractionJob, repeats: int) -> list[float]:
    """Median seconds of the same chunks on one actor and on two, each with one thread."""
    parts = np.split(np.arange(len(job.manifest)), range(CHUNK, len(job.manifest), CHUNK))

    def encode(pool: ActorPool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            chunks = [Chunk(part, Path(folder) / f"{part[0]}.arrow") for part in parts]
            list(pool.map("encode_chunk", chunks))

    with ray_cluster.connected(ResourceSettings(actors=3)), ExitStack() as stack:
        pools = [stack.enter_context(closing(ActorPool(ResourceSettings(actors=count)))) for count in (1, 2)]
        for pool in pools:
            pool.load(job)
        return alternated(repeats, *(partial(encode, pool) for pool in pools))


@dataclass(frozen=True)
class Reading:
    """Median seconds of reading features."""

    opening: float
    allocated: int  # bytes that opening allocates
    batch: float
    batch_of_parquet: float


def reading(folder: Path, count: int) -> Reading:
    """Time a cache of `count` features, and the same in Parquet with small row groups, which favour random reads.

    Raises:
        FedPGPError: they hold different features, or opening the cache copied it.
    """
    path, key = folder / "cache.arrow", FeatureKey("bench", "bench", "bench")
    values = numpy_generator(1, "cache").standard_normal((count, 1, WIDTH), np.float32)
    write_shard(path, key, np.arange(count), values)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), WIDTH)
    pq.write_table(pa.table({"feature": column}), folder / "features.parquet", row_group_size=GROUP)
    before = pa.total_allocated_bytes()
    cache = FeatureCache.open(path, key)
    allocated = pa.total_allocated_bytes() - before
    parquet = pq.ParquetFile(folder / "features.parquet", memory_map=True)
    batches = numpy_generator(1, "batches").integers(0, count, (BATCHES, BATCH))

    def of_parquet(rows: Array) -> Array:
        groups = np.unique(rows // GROUP)
        table = parquet.read_row_groups(groups.tolist(), columns=["feature"])
        read = np.concatenate([chunk.flatten().to_numpy() for chunk in table["feature"].chunks]).reshape(-1, WIDTH)
        found: Array = read[np.searchsorted(groups, rows // GROUP) * GROUP + rows % GROUP]
        return found

    if not np.array_equal(cache.gather(batches[0]), of_parquet(batches[0])):
        raise FedPGPError("bench features: the cache and Parquet hold different features")
    if allocated > values.nbytes // 100:
        raise FedPGPError(f"bench features: opening the cache allocated {allocated:,} bytes; it must map the file")
    return Reading(
        opening=median(seconds(partial(FeatureCache.open, path, key)) for _ in range(OPENINGS)),
        allocated=allocated,
        batch=median(seconds(partial(cache.gather, rows)) for rows in batches),
        batch_of_parquet=median(seconds(partial(of_parquet, rows)) for rows in batches),
    )


def measure(
    threads: int,
    report: Report,
    backbone: Backbone | None = None,
    photos: int = PHOTOS,
    rows: int = ROWS,
    repeats: int = REPEATS,
) -> Measurement:
    """Measure the extraction of `photos` images, then a cache of `rows` features."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # as an extraction does, so that the bare tower is not slower
    with tempfile.TemporaryDirectory() as folder:
        report(f"a cache of {rows:,} x {WIDTH}")
        cache = reading(Path(folder), rows)
    backbone = backbone or vit_b_16().backbone
    with tempfile.TemporaryDirectory() as folder:
        job = photograph(Path(folder), photos, backbone)
        report(f"{photos} photos: the bare tower, and an extraction")
        tower, extracted = extraction(job, threads, repeats)
        report(f"{photos} photos: one actor, and two")
        alone, together = actors(job, repeats)
    figures = {
        "extraction_fraction_of_tower": tower / extracted,
        "two_actor_speedup": alone / together,
        "open_milliseconds": 1e3 * cache.opening,
        "batch_read_ratio_to_parquet": cache.batch_of_parquet / cache.batch,
    }
    table = [
        [f"bare image tower, {threads} threads, images/s", f"{photos / tower:.2f}"],
        [f"extraction, {threads} threads, images/s", f"{photos / extracted:.2f}"],
        ["one actor with one thread, images/s", f"{photos / alone:.2f}"],
        ["two actors with one thread each, images/s", f"{photos / together:.2f}"],
        [f"open a cache of {rows:,} x {WIDTH}, ms", f"{1e3 * cache.opening:.2f}"],
        [f"{BATCH} random features of the cache, ms", f"{1e3 * cache.batch:.3f}"],
        [f"{BATCH} random features of Parquet, ms", f"{1e3 * cache.batch_of_parquet:.2f}"],
    ]
    notes = (
        f"{backbone.name}'s image tower with random weights; {photos} JPEGs of {PHOTO_SIZE[0]} x "
        f"{PHOTO_SIZE[1]}; alternated medians of {repeats}; actors in chunks of {CHUNK}",
        f"cache: the file is in the page cache; opening allocates {cache.allocated:,} bytes; medians of {OPENINGS} "
        f"openings and {BATCHES} batches; Parquet reads only the row groups (of {GROUP}) that it needs",
    )
    return Measurement("features", figures, ("what", "median"), table, notes)
