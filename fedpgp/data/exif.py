"""The EXIF orientation of an image. Client actors import this module, so it loads neither Pillow nor the sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

KEYS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
"""Where Pillow keeps the data of an image that tell its orientation."""


def orientation(image: Image) -> int:
    """Return the EXIF orientation of an image, 2 to 8; 1: stored upright, or not known."""
    from PIL import ExifTags

    try:
        value = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data raise anything
        return 1
    return value if value in range(2, 9) else 1
