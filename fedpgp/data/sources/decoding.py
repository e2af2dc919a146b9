"""Decodes image files to RGB."""

import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fedpgp.core.errors import DataError
from fedpgp.core.text import first_of, one_line
from fedpgp.data import exif

log = logging.getLogger(__name__)

MAX_PIXELS = 89_478_485
"""Larger images are rejected as decompression bombs (Pillow's limit, at which it only warns)."""
MAX_BYTES = 256 << 20
"""Larger files are rejected."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
"""Pillow also reads others, some with external programs (EPS with Ghostscript)."""

MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
"""Beginnings of JPEG, PNG, GIF and TIFF; those of the other formats are too short to tell, or not at the beginning."""
HEADER_BYTES = 32
"""No image of these formats is shorter."""


def read(path: Path, where: str) -> Image.Image:
    """Read and `decode` an image file; raise `DataError` if it is unreadable, above `MAX_BYTES`, or not an image."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise DataError(f"{where}: {size} bytes, more than {MAX_BYTES}: not a photo; replace or remove it")
        return decode(path.read_bytes(), where)
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror})") from error


def is_known(path: Path) -> bool:
    """Whether a file begins like an image of a known format; Pillow tells where `MAGIC` does not."""
    try:
        with path.open("rb") as file:
            start = file.read(HEADER_BYTES)
        if len(start) == HEADER_BYTES and start.startswith(MAGIC):
            return True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.open(path, formats=FORMATS).close()
    except (OSError, ValueError, Image.DecompressionBombError):
        return False
    return True


def decode(data: bytes, where: str) -> Image.Image:
    """Decode an image of any mode to RGB, as stored: EXIF orientation is not applied, as in CLIP's own transform.

    `upright` applies it. Pillow does so itself for TIFF.

    Raises:
        DataError: not an image, truncated, too large, or of a mode without a defined range; starts with `where`.
    """
    if not data:
        raise DataError(f"{where}: the image is empty (0 bytes); replace or remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its limit is checked below
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
        with opened as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
            return to_rgb(image)
    except UnidentifiedImageError:
        raise DataError(f"{where}: not an image of a known format; replace or remove it") from None
    except Exception as error:  # Pillow's decoders raise anything from OSError to struct.error
        raise DataError(f"{where}: cannot be read as an image ({one_line(error)}); replace or remove it") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: transparency onto white, 16 bits scaled to 8. The EXIF data are kept."""
    image.load()  # turns a TIFF upright and drops its orientation; a PNG may have EXIF data after the pixels
    kept = [(key, image.info[key]) for key in exif.KEYS if key in image.info]
    if image.mode == "F":
        raise ValueError("float pixels have no defined range; save it with 8 bits per channel")
    if image.mode.startswith("I"):
        high = np.clip(np.asarray(image), 0, 0xFFFF) >> 8
        image = Image.fromarray(high.astype(np.uint8))
    if image.mode.lower().endswith("a") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    rgb = image.convert("RGB")
    rgb.info.update(kept)
    return rgb


def upright(images: Sequence[Image.Image], names: Sequence[str]) -> list[Image.Image]:
    """Apply the EXIF orientation of photos, and log which; `names` are for that message."""
    turned = [name for image, name in zip(images, names, strict=True) if exif.orientation(image) != 1]
    if turned:
        log.warning(
            "%s: turned upright, as the EXIF orientation says (images of a data set are used as stored)",
            first_of(turned),
        )
    return [image if exif.orientation(image) == 1 else ImageOps.exif_transpose(image) for image in images]
