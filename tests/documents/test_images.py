"""Refusals of the image decoder: every kind of bad input has its reason, and none comes through as another exception."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cm3.core.errors import InputError
from cm3.documents import DecodeLimits, ImageError, RejectReason, check_header, decode_image
from cm3.documents.images import image_format

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def encoded(format: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def reason_of(source: bytes | Path, **limits: float) -> RejectReason:
    with pytest.raises(ImageError) as caught:
        decode_image(source, DecodeLimits(**limits))  # type: ignore[arg-type]
    assert isinstance(caught.value, InputError)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    """A PNG of one color that claims any size and has next to no data: a bomb."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" * 100)) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("format", FORMATS)
def test_allowed_formats_decode(format: str) -> None:
    data = encoded(format)
    assert image_format(data) == format
    assert check_header(data) == (40, 30)
    assert (decode_image(data).mode, decode_image(data).size) == ("RGB", (40, 30))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_animations_are_refused(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, format, save_all=True, append_images=frames[1:], lossless=True)
    assert reason_of(buffer.getvalue()) is RejectReason.ANIMATED_IMAGE
    with pytest.raises(ImageError, match="animated"):
        check_header(buffer.getvalue())
    with pytest.raises(ImageError, match="animated"):
        decode_image(Image.open(buffer))
    one = io.BytesIO()
    frames[0].save(one, format, save_all=True, append_images=[], lossless=True)
    assert decode_image(one.getvalue()).getpixel((4, 4)) == (255, 0, 0)


def test_a_jpeg_with_further_pictures_gives_its_first() -> None:
    """Phones put a depth map or a preview behind the photo (multi-picture format)."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16), "blue")])
    red, _, blue = decode_image(buffer.getvalue()).getpixel((4, 4))  # type: ignore[misc]
    assert red > 200 > blue


def test_files_and_names(tmp_path: Path) -> None:
    path = tmp_path / "wrong-suffix.txt"
    path.write_bytes(encoded())
    assert decode_image(path).tobytes() == decode_image(str(path)).tobytes() == decode_image(encoded()).tobytes()


@pytest.mark.parametrize("format", ["TIFF", "ICO", "PPM", "TGA", "PCX", "JPEG2000", "PDF"])
def test_other_formats_are_refused(format: str) -> None:
    assert reason_of(encoded(format)) is RejectReason.NOT_AN_IMAGE


@pytest.mark.parametrize("data", [b"hello", b"<svg/>", b"\0" * 100, b"B", bytes(range(256))])
def test_not_an_image(data: bytes) -> None:
    assert reason_of(data) is RejectReason.NOT_AN_IMAGE


def test_empty_missing_unreadable(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    assert reason_of(b"") is RejectReason.EMPTY_IMAGE
    assert reason_of(tmp_path / "empty.png") is RejectReason.EMPTY_IMAGE
    assert reason_of(tmp_path / "none.png") is RejectReason.MISSING_IMAGE
    assert reason_of(tmp_path / "empty.png" / "below.png") is RejectReason.MISSING_IMAGE
    assert reason_of(tmp_path) is RejectReason.UNREADABLE_IMAGE
    assert reason_of(Path("a\0b.png")) is RejectReason.MISSING_IMAGE
    assert reason_of(tmp_path / ("long" * 1000)) is RejectReason.UNREADABLE_IMAGE
    os.mkfifo(tmp_path / "pipe.png")
    assert reason_of(tmp_path / "pipe.png") is RejectReason.UNREADABLE_IMAGE  # and does not wait


def test_limits_come_before_decoding() -> None:
    assert reason_of(encoded(), max_bytes=100) is RejectReason.TOO_MANY_BYTES
    assert reason_of(encoded(), max_pixels=1199) is RejectReason.TOO_MANY_PIXELS
    assert decode_image(encoded(), DecodeLimits(max_pixels=1200)).size == (40, 30)
    assert reason_of(png_header(8001, 8000)) is RejectReason.TOO_MANY_PIXELS
    assert reason_of(png_header(30_000, 30_000)) is RejectReason.TOO_MANY_PIXELS  # Pillow's own alarm comes first
    assert reason_of(png_header(9600, 9600)) is RejectReason.TOO_MANY_PIXELS  # and its warning
    assert reason_of(png_header(1, 20_000)) is RejectReason.TOO_ELONGATED
    assert reason_of(png_header(20_000, 1)) is RejectReason.TOO_ELONGATED
    with pytest.raises(ImageError):
        decode_image(Image.new("L", (201, 2)))
    assert decode_image(Image.new("L", (200, 2))).size == (200, 2)


def test_zero_pixels() -> None:
    assert reason_of(png_header(0, 5)) in (RejectReason.CORRUPT_IMAGE, RejectReason.EMPTY_IMAGE)


@pytest.mark.parametrize("format", FORMATS)
def test_cut_files_are_truncated(format: str) -> None:
    """A cut through a header (of so small a GIF or JPEG) may also look like damage."""
    data = encoded(format)
    for share in (0.6, 0.9):
        assert reason_of(data[: int(len(data) * share)]) is RejectReason.TRUNCATED_IMAGE
    assert reason_of(data[: int(len(data) * 0.3)]) in (RejectReason.TRUNCATED_IMAGE, RejectReason.CORRUPT_IMAGE)


def test_a_wrong_checksum_is_corrupt() -> None:
    data = bytearray(encoded("PNG"))
    data[20] ^= 1  # in IHDR
    assert reason_of(bytes(data)) is RejectReason.CORRUPT_IMAGE


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_cost_the_picture() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert decode_image(buffer.getvalue()).size == (40, 30)


@pytest.mark.filterwarnings("ignore")  # Pillow warns about what it repairs; here everything is broken
@pytest.mark.parametrize("format", FORMATS)
def test_mutated_files_never_escape(format: str) -> None:
    """Random flips, cuts, insertions and duplications: a picture or an `ImageError`, nothing else."""
    rng = np.random.default_rng(11)
    data = encoded(format, (24, 18))
    decoded, messages = 0, set()
    for _ in range(150):
        mutant = bytearray(data)
        for _ in range(rng.integers(1, 8)):
            position = int(rng.integers(0, len(mutant)))
            kind = rng.integers(0, 4)
            if kind == 0:
                mutant[position] ^= 1 << int(rng.integers(0, 8))
            elif kind == 1:
                mutant[position : position + 4] = rng.bytes(4)
            elif kind == 2:
                del mutant[position : position + int(rng.integers(1, 9))]
            else:
                mutant[position:position] = mutant[position : position + 16]
        try:
            decoded += decode_image(bytes(mutant), DecodeLimits(max_pixels=1_000_000)).mode == "RGB"
        except ImageError as error:
            messages.add(str(error))
    assert 0 < decoded < 150
    assert not [message for message in messages if len(message) > 200 or "0x" in message]
