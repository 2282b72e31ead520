"""Pixel layouts: any Pillow mode to 8-bit RGB on white, in pure functions.

`Image.convert("RGB")` alone is wrong for much real data: it clips 16-bit values at 255, turns a transparent pixel into
whatever color lies beneath it, and refuses LAB. Here every mode has one explicit way:

    1, L, P, RGB, HSV, YCbCr, CMYK      Pillow's conversion (CMYK without color management: (1 - C)(1 - K))
    LA, PA, RGBA, and any tRNS chunk    straight alpha over white
    La, RGBa                            premultiplied alpha over white
    I;16 (all byte orders), I, F        scaled to 8 bit from their full range (see `full_scale`)
    LAB                                 CIE L*a*b* (D50) to sRGB by littleCMS
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageCms

from cm3.documents.reasons import ImageError, RejectReason

_WHITE = (255, 255, 255)
_DIRECT = frozenset({"1", "L", "P", "RGB", "RGBX", "HSV", "YCbCr", "CMYK"})
_STRAIGHT_ALPHA = frozenset({"LA", "PA", "RGBA"})
_PREMULTIPLIED = frozenset({"La", "RGBa"})
_SIXTEEN_TO_EIGHT = ((np.arange(65536) * 255 + 32767) // 65535).astype(np.uint8)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return `image` as a new RGB picture of the same size; transparent pixels show white.

    Raises `ImageError` (unsupported_mode) for a mode without a rule above.
    """
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        return _wide_to_rgb(image)
    if mode in _PREMULTIPLIED:
        return _premultiplied_on_white(image)
    if mode in _STRAIGHT_ALPHA or (mode in _DIRECT and "transparency" in image.info):
        return _on_white(_with_alpha(image))
    if mode == "RGB":
        return image.copy()
    if mode in _DIRECT:
        return image.convert("RGB")
    if mode == "LAB":
        return _lab_to_rgb(image)
    raise ImageError(RejectReason.UNSUPPORTED_MODE, f"the picture has pixel layout {mode!r}, which has no known way to RGB")


def full_scale(values: np.ndarray, mode: str) -> float:
    """The value that means white in a wide grayscale picture.

    "I" (Pillow's 32-bit integer): 65535, the 16-bit data it usually carries, unless a value is larger: then 2³¹ - 1.
    "F": the smallest of 1, 255, 65535 that holds the largest value, else that value.
    """
    top = float(values.max(initial=0))
    if mode == "I":
        return 65535.0 if top <= 65535 else 2.0**31 - 1
    return next((scale for scale in (1.0, 255.0, 65535.0) if top <= scale), top)


def _wide_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image)  # (Y, X) uint16, int32 or float32
    if image.mode.startswith("I;16"):
        gray = _SIXTEEN_TO_EIGHT[values]  # a table keeps 64 million pixels out of float arithmetic
    else:
        finite = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0, copy=False)
        finite *= 255 / full_scale(finite, image.mode)
        gray = np.rint(np.clip(finite, 0, 255, out=finite), out=finite).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return Image.fromarray(gray).convert("RGB")


def _with_alpha(image: Image.Image) -> Image.Image:
    transparency = image.info.get("transparency")
    if isinstance(transparency, tuple) and max(transparency) > 255:  # of a 16-bit RGB file that Pillow read as 8-bit
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in transparency)
    return image.convert("RGBA")


def _on_white(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", image.size, _WHITE)
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


def _premultiplied_on_white(image: Image.Image) -> Image.Image:
    bands = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)  # (Y, X, 2 or 4)
    color, alpha = bands[..., :-1].astype(np.uint16), bands[..., -1:].astype(np.uint16)
    flat = np.minimum(color + (255 - alpha), 255).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(flat, (*flat.shape[:2], 3)).copy())


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    # The optimized transform interpolates in a coarse table: up to 50 of 255 beside the colors, this one 1.2.
    transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB", flags=ImageCms.Flags.NOOPTIMIZE)
    converted = ImageCms.applyTransform(image, transform)
    if converted is None:  # only for in-place transforms
        raise ImageError(RejectReason.UNSUPPORTED_MODE, "the LAB picture could not be converted")
    return converted
