"""Decoding pictures from anywhere, also from people who mean harm: bytes, files or PIL images to upright 8-bit RGB.

The order is what makes it safe: size in bytes → format by its first bytes (never by file name, and only formats on the
list) → pixel count, aspect and a single frame from the header → decoding → orientation, alpha, depth. Each refusal has a
named reason.
Metadata (EXIF, GPS, profiles, comments) never leaves this function. Color profiles are not applied.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from cm3.documents.pixels import to_rgb
from cm3.documents.reasons import ImageError, RejectReason

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")

_ANIMATED = ("GIF", "PNG", "WEBP")  # a JPEG with further pictures (a phone's depth map or preview) has one that is meant
_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class DecodeLimits:
    """What a picture may cost: bytes of the file, pixels (width × height), longer side over shorter side."""

    max_bytes: int = 32 * 1024 * 1024
    max_pixels: int = 64_000_000
    max_aspect: float = 100.0


DEFAULT_LIMITS = DecodeLimits()


def decode_image(
    source: bytes | Path | str | Image.Image, limits: DecodeLimits = DEFAULT_LIMITS, draft_side: int | None = None
) -> Image.Image:
    """Decode the bytes of a still PNG, JPEG, WebP, GIF or BMP, such a file, or a PIL image of any mode.

    Returns a new PIL image of mode RGB, 8 bit, with EXIF orientation applied and alpha laid on white.
    `draft_side`: a JPEG may come back at 1/2, 1/4 or 1/8 of its size as long as no side is shorter than this: several times
    faster, but not the pixels that scaling the whole picture gives, and cut to half a pixel of the smaller one.
    Raises `ImageError` with a `reason`.
    """
    if isinstance(source, Image.Image):
        return _to_upright_rgb(source, limits)
    with _stream(source) as stream, _open(stream, limits) as image:
        if draft_side is not None:
            _check_header(image, limits)  # of the picture, not of its draft
            image.draft(None, (draft_side, draft_side))  # other formats ignore it
        return _to_upright_rgb(image, limits)


def check_header(source: bytes | Path | str, limits: DecodeLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """The stored (width, height) of encoded bytes or a file, after every check that needs no decoding.

    Raises `ImageError` as `decode_image` does.
    """
    with _stream(source) as stream, _open(stream, limits) as image:
        _check_header(image, limits)
        return image.size


def image_format(data: bytes) -> str | None:
    """The allowed format that `data` starts like ("PNG", "JPEG", "WEBP", "GIF", "BMP"), or None."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    return "BMP" if data[:2] == b"BM" else None


@contextmanager
def _stream(source: bytes | Path | str) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    try:
        if not stat.S_ISREG(os.stat(source).st_mode):  # opening a pipe would wait, reading a device never ends
            raise ImageError(RejectReason.UNREADABLE_IMAGE, f"{source} is not a file; expected a picture")
        stream = open(source, "rb")  # noqa: SIM115 - closed below; only the opening may raise here
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name that no file can have, with a NUL
        raise ImageError(RejectReason.MISSING_IMAGE, f"there is no picture at {source}; check the path") from None
    except OSError as error:
        raise ImageError(
            RejectReason.UNREADABLE_IMAGE, f"the picture {str(source)[:200]} cannot be read: {error.strerror}"
        ) from None
    with stream:
        yield stream


def _open(stream: BinaryIO, limits: DecodeLimits) -> Image.Image:
    num_bytes = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if num_bytes == 0:
        raise ImageError(RejectReason.EMPTY_IMAGE, "the picture is empty (0 bytes); save it again")
    if num_bytes > limits.max_bytes:
        message = f"the picture has {num_bytes:,} bytes, at most {limits.max_bytes:,} are accepted; make it smaller"
        raise ImageError(RejectReason.TOO_MANY_BYTES, message)
    start = stream.read(16)
    kind = image_format(start)
    if kind is None:
        raise ImageError(RejectReason.NOT_AN_IMAGE, "this is no picture: expected a PNG, JPEG, WebP, GIF or BMP file")
    if kind == "WEBP" and num_bytes < 8 + int.from_bytes(start[4:8], "little"):  # Pillow refuses it too, but can't say why
        raise _truncated(kind)
    stream.seek(0)
    try:
        return Image.open(stream, formats=[kind])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels("too many", limits) from None
    except Exception as error:  # Pillow's header parsers raise almost anything on hostile bytes
        raise _damaged(kind, error) from None


def _to_upright_rgb(image: Image.Image, limits: DecodeLimits) -> Image.Image:
    _check_header(image, limits)
    try:
        image.load()
        orientation = _orientation(image)
        rgb = to_rgb(image)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # so do its decoders
        raise _damaged(image.format or image.mode, error) from None
    upright = rgb.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else rgb
    upright.info.clear()
    return upright


def _check_header(image: Image.Image, limits: DecodeLimits) -> None:
    size = width, height = image.size
    if width * height > limits.max_pixels:
        raise _too_many_pixels(f"{width}×{height}", limits)
    if min(size) < 1:
        raise ImageError(RejectReason.EMPTY_IMAGE, f"the picture has no pixels ({width}×{height})")
    if max(size) > limits.max_aspect * min(size):
        message = f"the picture is {width}×{height}: one side is more than {limits.max_aspect:g} times the other; crop it"
        raise ImageError(RejectReason.TOO_ELONGATED, message)
    if image.format in _ANIMATED and _has_frames(image):
        message = f"the {image.format} picture is animated: which of its frames is meant is not said; save that one alone"
        raise ImageError(RejectReason.ANIMATED_IMAGE, message)


def _has_frames(image: Image.Image) -> bool:
    """Whether a second frame follows: the header says it, for a GIF the next block; no pixel is decoded."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception as error:
        raise _damaged(image.format or image.mode, error) from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a broken EXIF block must not cost the picture: it is then shown as stored
        return 1


def _too_many_pixels(size: str, limits: DecodeLimits) -> ImageError:
    message = f"the picture has {size} pixels, at most {limits.max_pixels / 1e6:g} million are accepted; make it smaller"
    return ImageError(RejectReason.TOO_MANY_PIXELS, message)


def _truncated(kind: str) -> ImageError:
    return ImageError(RejectReason.TRUNCATED_IMAGE, f"the {kind} picture is cut off: its end is missing; copy it again")


def _damaged(kind: str, error: Exception) -> ImageError:
    if "truncat" in str(error).lower() or isinstance(error, EOFError):
        return _truncated(kind)
    if isinstance(error, UnidentifiedImageError):  # its text holds the address of the stream
        return ImageError(RejectReason.CORRUPT_IMAGE, f"the {kind} picture is damaged: its header makes no sense; save it again")
    detail = str(error)[:100] or type(error).__name__
    return ImageError(RejectReason.CORRUPT_IMAGE, f"the {kind} picture is damaged: {detail}; save it again")
