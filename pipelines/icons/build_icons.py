"""Build the data set `icons` of the package: named drawings of icon families, rendered with seeded variation.

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
DRAWINGS = 3
"""most drawings of a family and class"""
RENDERS = 6
"""pictures per family and class, shared out among its drawings"""


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
    """The rows of the data set, pictures as WebP without loss."""
    concepts = list(icons.concepts())
    for label, concept in enumerate(CLASSES):
        for domain, family in enumerate(families):
            rows = np.flatnonzero((drawings.concept == concepts.index(concept)) & (drawings.family == family))
            if not len(rows):
                continue
            own = chosen_drawings(rows, drawings)
            shown = np.resize(own, RENDERS)
            generator = torch.Generator().manual_seed(seed * 1_000_000 + label * 100 + domain)
            # The same number of styled pictures everywhere, whatever the drawing.
            styled = torch.randperm(RENDERS, generator=generator) < round(share * RENDERS)
            styles = torch.where(styled, icons.STYLES.index(style), 0)
            look = icons.looks(styles, generator)
            for row, picture in zip(shown, icons.render(drawings.premultiplied(shown, look.ink), look), strict=True):
                yield {
                    "image": {"bytes": webp(picture), "path": None},
                    "label": label,
                    "domain": domain,
                    "drawing": f"{drawings.family[row]}:{drawings.name[row]}",
                }


def webp(picture: torch.Tensor) -> bytes:
    """A picture [3, h, w] in 0..1 as the bytes of a WebP file without loss, which is half as large as a PNG."""
    levels = (picture.permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "WEBP", lossless=True, quality=100, method=6)
    return file.getvalue()


def write(rows: list[dict[str, Any]], families: list[str], folder: Path) -> None:
    """One Parquet file, with the names in the metadata as Hugging Face writes them. Splits are drawn by its reader."""
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
    table = pa.Table.from_pylist(rows, schema)
    pq.write_table(table, folder / "icons-0000.parquet", compression="zstd", row_group_size=256)


def contact_sheet(rows: list[dict[str, Any]], families: list[str], path: Path) -> None:
    """A line per class in each of two columns, with a picture of every family that has it, in the same place."""
    cell, gap = 24, 12
    half = math.ceil(len(CLASSES) / 2)
    width = len(families) * cell + gap
    sheet = Image.new("RGB", (2 * width - gap, half * (cell + 1)), "white")
    first = {(row["label"], row["domain"]): row["image"]["bytes"] for row in reversed(rows)}
    for (label, domain), data in first.items():
        column, line = divmod(label, half)
        picture = Image.open(io.BytesIO(data)).resize((cell, cell), Image.Resampling.BICUBIC)
        sheet.paste(picture, (column * width + domain * cell, line * (cell + 1)))
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
    seed: Annotated[int, typer.Option(help="Seed of the variation.")] = 1,
) -> None:
    """Build the data set, its contact sheet and the notice beside it."""
    torch.set_num_threads(1)
    families = [name for name, family in icons.FAMILIES.items() if family.federated]
    drawings = icons.load(families, cache, typer.echo)
    with typer.progressbar(pictures(drawings, families, share, style, seed), label="rendering") as shown:
        rows = list(shown)
    write(rows, families, out)
    contact_sheet(rows, families, out.parent / "contact-sheet.png")
    (out.parent / "NOTICE.md").write_text(notice(families, cache), encoding="utf-8")
    size = sum(file.stat().st_size for file in out.glob("*.parquet"))
    typer.echo(f"{len(rows)} pictures, {len(CLASSES)} classes, {len(families)} families, {size / 1e6:.1f} MB in {out}")


if __name__ == "__main__":
    typer.run(main)
