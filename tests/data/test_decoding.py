"""Any image to RGB, or a reason why not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from fedpgp.core.errors import DataError
from fedpgp.data.exif import orientation
from fedpgp.data.sources import decoding
from fedpgp.data.sources.decoding import decode


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def pixel(data: bytes) -> tuple[int, ...]:
    image = decode(data, "x")
    assert image.mode == "RGB"
    return tuple(image.getpixel((0, 0)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("RGB", (3, 2), (1, 2, 3)), "PNG", (1, 2, 3)),
        (Image.new("L", (3, 2), 77), "PNG", (77, 77, 77)),
        (Image.new("1", (3, 2), 1), "PNG", (255, 255, 255)),
        (Image.new("P", (3, 2), 0), "GIF", (0, 0, 0)),
        (Image.new("CMYK", (3, 2), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
        (Image.new("RGBA", (3, 2), (10, 20, 30, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (3, 2), (10, 20, 30, 255)), "PNG", (10, 20, 30)),
        (Image.new("LA", (3, 2), (0, 0)), "PNG", (255, 255, 255)),
        (Image.fromarray(np.full((2, 3), 128 * 256, np.uint16)), "PNG", (128, 128, 128)),
        (Image.fromarray(np.full((2, 3), 128 * 256, np.uint16)), "TIFF", (128, 128, 128)),
        (Image.new("I", (3, 2), 64 * 256 + 255), "TIFF", (64, 64, 64)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_modes(image: Image.Image, kind: str, expected: tuple[int, ...]) -> None:
    assert pixel(saved(image, kind)) == expected


def test_transparent_palette_color_becomes_white() -> None:
    assert pixel(saved(Image.new("P", (3, 2), 0), "PNG", transparency=0)) == (255, 255, 255)


def test_cmyk_jpeg() -> None:
    red, green, blue = pixel(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert red > 245
    assert green < 10
    assert blue < 10


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the image is empty"),
        (b"<html>404</html>", "not an image of a known format"),
        (saved(Image.effect_noise((64, 64), 50), "JPEG")[:-400], "truncated"),
        (saved(Image.effect_noise((64, 64), 50), "PNG")[:-400], "truncated"),
        (saved(Image.new("F", (3, 2), 0.5), "TIFF"), "float pixels have no defined range"),
    ],
)
def test_what_cannot_be_read_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=rf"(?s)^cat/0.jpg: .*{reason}.*replace or remove it$") as caught:
        decode(data, "cat/0.jpg")
    assert "\n" not in str(caught.value)


def test_decompression_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXELS", 99)
    decode(saved(Image.new("L", (9, 11))), "x")
    with pytest.raises(DataError, match=r"10 x 10 pixels, more than 99"):
        decode(saved(Image.new("L", (10, 10))), "x")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (3, 2), color) for color in ((0, 255, 0), (255, 0, 0), (0, 0, 255))]
    options = {} if kind in ("GIF", "TIFF") else {"lossless": True}
    red, green, blue = pixel(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert (red, green, blue) == (0, 255, 0)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    """A header that promises 60,000 x 60,000 pixels, and no pixels behind it."""
    header = saved(Image.new("L", (1, 1)))
    with pytest.raises(DataError, match=r"60000 x 60000 pixels|decompression bomb"):
        decode(bomb(header), "x")


def bomb(png: bytes) -> bytes:
    import struct
    import zlib

    chunk = b"IHDR" + struct.pack(">II", 60_000, 60_000) + png[24:29]
    return png[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


def test_what_another_program_would_read_is_no_image() -> None:
    """Pillow hands PostScript, which is a program, to Ghostscript."""
    with pytest.raises(DataError, match="not an image of a known format"):
        decode(saved(Image.new("RGB", (3, 2)), "EPS"), "x")


def test_a_file_over_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(saved(Image.new("L", (9, 11))))
    assert decoding.read(path, "x").size == (9, 11)
    monkeypatch.setattr(decoding, "MAX_BYTES", 10)
    with pytest.raises(DataError, match=r"^large: \d+ bytes, more than 10: not a photo"):
        decoding.read(path, "large")
    with pytest.raises(DataError, match=r"^gone: cannot be read \(No such file"):
        decoding.read(tmp_path / "gone.png", "gone")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photo_is_decoded_as_stored_and_turned_upright_on_request(
    kind: str, turn: int, caplog: pytest.LogCaptureFixture
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    stored = Image.fromarray(np.arange(0, 240, 10, np.uint8).reshape(4, 6)).convert("RGBA" if kind == "PNG" else "RGB")
    data = saved(stored, kind, exif=exif)
    image = decode(data, "x")
    assert (image.size, orientation(image)) == ((6, 4), turn)
    (turned,) = decoding.upright([image], ["photo.jpg"])
    assert turned.tobytes() == ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB").tobytes()
    assert ["photo.jpg: turned upright" in message for message in caplog.messages] == [True] * (turn != 1)


def test_a_tiff_is_upright_and_not_turned_again() -> None:
    stored = Image.fromarray(np.arange(0, 240, 10, np.uint8).reshape(4, 6))
    described = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    image = decode(saved(stored, "TIFF", tiffinfo={ExifTags.Base.Orientation: 6, 700: described}), "x")
    assert (image.size, orientation(image)) == ((4, 6), 1)


def test_exif_data_after_the_pixels_of_a_png_are_found() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = saved(Image.new("RGB", (6, 4)), "PNG", exif=exif)
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    last = data.index(b"IEND") - 4
    moved = data[:start] + data[end:last] + data[start:end] + data[last:]
    assert [orientation(decode(one, "x")) for one in (data, moved)] == [6, 6]


def test_damaged_exif_data_are_no_orientation() -> None:
    image = Image.new("RGB", (2, 2))
    for exif in (b"", b"Exif\0\0not TIFF", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        image.info["exif"] = exif
        assert orientation(image) == 1
