"""A small data set without files: coloured shapes, drawn in several styles, named by colour and shape."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.core.seeding import numpy_generator
from fedpgp.data.sources.base import Scan, Source, image_rows

SIZE = 48
PER_CLASS_AND_STYLE = 40
VERSION = "shapes-1"
"""Part of every file name, hence of the manifest's digest; raise it when a drawing changes."""
STYLES = ("filled", "outline", "dotted")
COLORS = {
    "red": (220, 40, 40),
    "orange": (240, 140, 20),
    "yellow": (225, 205, 30),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "purple": (150, 50, 180),
}


def _regular(corners: int, turn: float = 0) -> np.ndarray:
    angles = (np.arange(corners) + turn) * 2 * np.pi / corners
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1)


_RADII = np.where(np.arange(10) % 2, 0.4, 1.0)[:, None]
_ARM = [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
OUTLINES = {
    "circle": _regular(40),
    "square": _regular(4, turn=0.5),
    "triangle": _regular(3),
    "star": _regular(10) * _RADII,
    "cross": np.array(_ARM) / 3.2,
}
"""Corners of each shape around the origin, radius about 1. Shape [corners, 2]."""

_PAIRS = [(color, shape) for color in COLORS for shape in OUTLINES]
CLASS_NAMES = tuple(f"{color} {shape}" for color, shape in _PAIRS[::2] + _PAIRS[1::2])
"""Every other pair first, so that both halves contain every colour and shape: novel names recombine known words."""


class ShapesSource(Source):
    """30 classes x 3 styles (the domains) x 40 images of 48 x 48 pixels, the same on every machine."""

    name, needs_root = "shapes", False

    def __init__(self, settings: DataSettings) -> None:
        """Accept `settings`, of which none is used."""

    def scan(self) -> Scan:
        """One row per drawing: `row` is its number within its class and style."""
        labels, styles, rows = np.indices((len(CLASS_NAMES), len(STYLES), PER_CLASS_AND_STYLE)).reshape(3, -1)
        files = [f"{VERSION}/{STYLES[style]}/{CLASS_NAMES[label]}" for label, style in zip(labels, styles, strict=True)]
        table = image_rows(len(files), file=files, row=rows, label=labels, domain=styles)
        return Scan(CLASS_NAMES, STYLES, table, numbered=True)

    def read(self, rows: pa.Table) -> Iterator[Image.Image]:
        """Draw the images of `rows`, in order."""
        for file, row in zip(rows["file"].to_pylist(), rows["row"].to_pylist(), strict=True):
            version, style, name = file.split("/")
            if version != VERSION:
                raise DataError(f"{file}: not a drawing of this version; build the manifest again")
            color, shape = name.split(" ")
            yield draw(color, shape, style, row)


def draw(color: str, shape: str, style: str, number: int) -> Image.Image:
    """Draw image `number` of a class in a style: random place, size, tilt, shade and grain. RGB, 48 x 48."""
    generator = numpy_generator(0, "shapes", color, shape, style, number)
    radius = generator.uniform(0.26, 0.4) * SIZE
    center = SIZE / 2 + generator.uniform(-1, 1, 2) * (SIZE / 2 - radius - 2)
    tilt = generator.uniform(-0.25, 0.25)
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    corners = OUTLINES[shape] @ turn * radius + center
    ink = tuple(int(level) for level in np.clip(COLORS[color] + generator.normal(0, 12, 3), 0, 255))
    image = Image.new("RGB", (SIZE, SIZE), (int(generator.integers(215, 256)),) * 3)
    pen = ImageDraw.Draw(image)
    if style == "filled":
        pen.polygon(corners.ravel().tolist(), fill=ink)
    elif style == "outline":
        pen.line(np.concatenate([corners, corners[:2]]).ravel().tolist(), fill=ink, width=3, joint="curve")
    else:
        for x, y in _along(corners, step=4.5):
            pen.ellipse((x - 1.3, y - 1.3, x + 1.3, y + 1.3), fill=ink)
    grain = generator.normal(0, 5, (SIZE, SIZE, 3))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def _along(corners: np.ndarray, step: float) -> np.ndarray:
    """Points every `step` pixels along the closed outline. Shape [points, 2]."""
    closed = np.concatenate([corners, corners[:1]])
    walked = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    at = np.linspace(0, walked[-1], max(3, round(walked[-1] / step)), endpoint=False)
    return np.stack([np.interp(at, walked, closed[:, axis]) for axis in (0, 1)], axis=1)
