"""Build the data set `icons` of the package: named drawings of eight icon families, rendered with seeded variation.

One command: python pipelines/icons/build_icons.py
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import icon_drawings as icons
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from PIL import Image

CLASSES = tuple(icons.read_table()["classes"])
SPLITS = {"train": 4, "val": 2, "test": 2}
"""families per class; a class that a family lacks has one test family fewer, never fewer than one"""
DRAWINGS = 3
"""most drawings of a family and class"""
RENDERS = 6
"""pictures per family and class, shared out among its drawings"""
ORDER = ("train", "test", "val", "train", "train", "val", "test", "train")


def assign(present: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The split of each (class, family); all drawings of a family of a class stay together. Shape [classes, families].

    Within every run of eight classes each family serves each split equally often (a Latin square with shuffled rows
    and columns), so that base and novel classes see all families in all splits.
    """
    classes, families = present.shape
    square = np.array([np.roll(ORDER, shift) for shift in range(families)])
    out = np.empty((classes, families), dtype="U5")
    for start in range(0, classes, families):
        rows = rng.permutation(families)
        out[start : start + families] = square[rows][:, rng.permutation(families)][: classes - start]
    for label in range(classes):
        for split in ("test", "val"):  # a class whose only absent family would leave a split too thin
            if not np.any((out[label] == split) & present[label]):
                spare = np.flatnonzero((out[label] == "train") & present[label])
                out[label, rng.choice(spare)] = split
    return np.where(present, out, "")


def chosen_drawings(rows: np.ndarray, drawings: icons.Drawings) -> np.ndarray:
    """At most DRAWINGS of them: of different stems first, then other styles of the same."""
    seen: dict[str, int] = {}
    ranks = []
    for row in rows:
        stem = str(drawings.stem[row])
        seen[stem] = seen.get(stem, 0) + 1
        ranks.append((seen[stem], len(ranks)))
    return rows[[position for _, position in sorted(ranks)[:DRAWINGS]]]


def pictures(
    drawings: icons.Drawings, families: list[str], share: float, style: str, seed: int
) -> Iterator[dict[str, Any]]:
    """The rows of the data set, pictures as PNG."""
    concepts = list(icons.concepts())
    rows = {
        (label, domain): np.flatnonzero((drawings.concept == concepts.index(name)) & (drawings.family == family))
        for label, name in enumerate(CLASSES)
        for domain, family in enumerate(families)
    }
    present = np.array(
        [[len(rows[label, domain]) > 0 for domain in range(len(families))] for label in range(len(CLASSES))]
    )
    splits = assign(present, np.random.default_rng(seed))
    for label in range(len(CLASSES)):
        for domain in range(len(families)):
            if not present[label, domain]:
                continue
            own = chosen_drawings(rows[label, domain], drawings)
            shown = np.resize(own, RENDERS)
            generator = torch.Generator().manual_seed(seed * 1_000_000 + label * 100 + domain)
            # The same number of styled pictures everywhere, whatever the drawing.
            styled = torch.randperm(RENDERS, generator=generator) < round(share * RENDERS)
            styles = torch.where(styled, icons.STYLES.index(style), 0)
            look = icons.looks(styles, generator)
            for row, picture in zip(shown, icons.render(drawings.premultiplied(shown, look.ink), look), strict=True):
                yield {
                    "image": {"bytes": png(picture), "path": None},
                    "label": label,
                    "domain": domain,
                    "drawing": f"{drawings.family[row]}:{drawings.name[row]}",
                    "split": splits[label, domain],
                }


def png(picture: torch.Tensor) -> bytes:
    """A picture [3, h, w] in 0..1 as the bytes of a PNG."""
    levels = (picture.permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG", optimize=True)
    return file.getvalue()


def write(rows: list[dict[str, Any]], families: list[str], folder: Path) -> None:
    """One Parquet file per split, with the names in the metadata as Hugging Face writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(CLASSES), "_type": "ClassLabel"},
        "domain": {"names": families, "_type": "ClassLabel"},
        "drawing": {"dtype": "string", "_type": "Value"},
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), ("label", pa.int32()), ("domain", pa.int32()), ("drawing", pa.string())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    for split in SPLITS:
        own = [{key: value for key, value in row.items() if key != "split"} for row in rows if row["split"] == split]
        pq.write_table(
            pa.Table.from_pylist(own, schema), folder / f"{split}-0000.parquet", compression="zstd", row_group_size=256
        )


def contact_sheet(rows: list[dict[str, Any]], path: Path, per_class: int = 8) -> None:
    """Every class in one row of each of two columns: training drawings left, test drawings right."""
    cell, gap = 24, 4
    half = math.ceil(len(CLASSES) / 4)
    width = 2 * per_class * cell + gap
    sheet = Image.new("RGB", (4 * width + 3 * 3 * gap, half * (cell + 1)), "white")
    for label in range(len(CLASSES)):
        column, line = divmod(label, half)
        for side, split in enumerate(("train", "test")):
            own = [row for row in rows if row["label"] == label and row["split"] == split]
            for place in range(min(per_class, len(own))):
                item = own[place * len(own) // per_class]
                picture = Image.open(io.BytesIO(item["image"]["bytes"])).resize((cell, cell), Image.Resampling.BICUBIC)
                left = column * (width + 3 * gap) + side * (per_class * cell + gap) + place * cell
                sheet.paste(picture, (left, line * (cell + 1)))
    sheet.quantize(128).save(path, optimize=True)


def notice(families: list[str], cache: Path) -> str:
    """Source, version and licence of each family, from the packages' own metadata."""
    texts = (icons.HERE / "icon_licences.md").read_text(encoding="utf-8")
    lines = [texts.split("<!-- table -->")[0]]
    for heading, federated in (("In the data set", True), ("In pretraining only", False)):
        lines += [f"## {heading}", "", "| family | source (npm), drawings | licence | copyright |", "|---|---|---|---|"]
        for name, family in icons.FAMILIES.items():
            if family.federated != federated or (federated and name not in families):
                continue
            metadata = [icons.checked_metadata(package, cache) for package in family.packages]
            sources = "<br>".join(
                f"{package.name} {package.version}, {about['drawings']}"
                for package, about in zip(family.packages, metadata, strict=True)
            )
            lines.append(f"| `{name}`: {family.title} | {sources} | {family.packages[0].licence} | {family.holder} |")
        lines.append("")
    return "\n".join(lines) + texts.split("<!-- table -->")[1]


def main(
    out: Annotated[Path, typer.Option(help="Where the data set goes.")] = Path("fedpgp/assets/icons"),
    cache: Annotated[Path, typer.Option(help="Fetched packages and rasterised drawings.")] = icons.CACHE,
    share: Annotated[float, typer.Option(help="Share of the pictures that are drawn in the style.")] = 1.0,
    style: Annotated[str, typer.Option(help="That style; the others are plain.")] = "rotate",
    seed: Annotated[int, typer.Option(help="Seed of splits and variation.")] = 1,
) -> None:
    """Build the data set, its contact sheet and the notice beside it."""
    torch.set_num_threads(1)
    families = [name for name, family in icons.FAMILIES.items() if family.federated]
    drawings = icons.load(families, cache, typer.echo)
    with typer.progressbar(pictures(drawings, families, share, style, seed), label="rendering") as shown:
        rows = list(shown)
    write(rows, families, out)
    contact_sheet(rows, out.parent / "contact-sheet.png")
    (out.parent / "NOTICE.md").write_text(notice(families, cache), encoding="utf-8")
    size = sum(file.stat().st_size for file in out.glob("*.parquet"))
    typer.echo(f"{len(rows)} pictures, {len(CLASSES)} classes, {len(families)} families, {size / 1e6:.1f} MB in {out}")


if __name__ == "__main__":
    typer.run(main)
