"""Pixel layouts × EXIF orientations against a reference in NumPy alone: the right pixels, within 1/255."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from cm3.documents import ImageError, RejectReason, decode_image
from cm3.documents.pixels import full_scale, to_rgb

HEIGHT, WIDTH = 9, 14
ORIENTATION = 0x0112


def gradient(channels: int, top: float = 255) -> np.ndarray:
    """(HEIGHT, WIDTH, channels) covering 0 … top, every channel in its own order; no symmetry that hides a wrong turn."""
    values = np.linspace(0, top, HEIGHT * WIDTH * channels)
    order = np.random.default_rng(7).permutation(values.size)
    order[0], order[-1] = order[-1], order[0]
    return np.rint(values[order]).reshape(HEIGHT, WIDTH, channels)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF 2.32, table of orientations: where row 0 and column 0 of the stored picture belong."""
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: pixels[::-1].swapaxes(0, 1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: pixels[:, ::-1].swapaxes(0, 1),
    }[orientation]


def on_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Straight alpha in [0, 255] over white."""
    return color * (alpha / 255) + 255 * (1 - alpha / 255)


def rgb(gray: np.ndarray) -> np.ndarray:
    return np.broadcast_to(gray, (*gray.shape[:2], 3))


def lab_to_srgb(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """CIE 15:2004 L*a*b* of white point D50, adapted to D65 by Bradford (Lindbloom's matrix), IEC 61966-2-1 transfer curve."""
    fy = (lightness + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.96422, 1.0, 0.82521]
    matrix = [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
    linear = np.clip(xyz @ np.transpose(matrix), 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def case(mode: str) -> tuple[Image.Image, np.ndarray]:
    """A picture of `mode` and its RGB reference (HEIGHT, WIDTH, 3) in [0, 255]."""
    one, four = gradient(1), gradient(4).astype(np.uint8)
    gray, color, alpha = one.astype(np.uint8)[..., 0], four[..., :3], four[..., 3:].astype(float)
    if mode == "1":
        return Image.fromarray(gray > 127), rgb((one > 127) * 255.0)
    if mode == "L":
        return Image.fromarray(gray), rgb(one)
    if mode == "LA":
        two = gradient(2).astype(np.uint8)
        return Image.fromarray(two, "LA"), on_white(rgb(two[..., :1].astype(float)), two[..., 1:].astype(float))
    if mode in ("P", "PA", "P+tRNS"):
        palette = np.random.default_rng(3).integers(0, 256, (256, 3), dtype=np.uint8)
        image = Image.fromarray(gray)
        image.putpalette(palette.tobytes())
        reference = palette[gray].astype(float)
        if mode == "P+tRNS":
            table = np.random.default_rng(4).integers(0, 256, 256, dtype=np.uint8)
            image.info["transparency"] = table.tobytes()
            return image, on_white(reference, table[gray][..., None].astype(float))
        if mode == "PA":
            image = image.convert("PA")
            image.putalpha(Image.fromarray(four[..., 3]))
            return image, on_white(reference, alpha)
        return image, reference
    if mode == "L+tRNS":
        image = Image.fromarray(gray)
        image.info["transparency"] = int(gray[2, 3])
        return image, rgb(np.where(gray[..., None] == gray[2, 3], 255.0, one))
    if mode == "RGB+tRNS":
        image = Image.fromarray(color)
        image.info["transparency"] = tuple(int(value) for value in color[2, 3])
        return image, np.where((color == color[2, 3]).all(-1, keepdims=True), 255.0, color.astype(float))
    if mode == "RGB":
        return Image.fromarray(color), color.astype(float)
    if mode == "RGBA":
        return Image.fromarray(four), on_white(color.astype(float), alpha)
    if mode == "RGBa":
        premultiplied = np.rint(color * (alpha / 255)).astype(np.uint8)
        image = Image.frombytes("RGBa", (WIDTH, HEIGHT), np.concatenate([premultiplied, four[..., 3:]], -1).tobytes())
        return image, premultiplied + (255 - alpha)
    if mode == "La":
        premultiplied = np.rint(one * (alpha / 255)).astype(np.uint8)
        image = Image.frombytes("La", (WIDTH, HEIGHT), np.concatenate([premultiplied, four[..., 3:]], -1).tobytes())
        return image, rgb(premultiplied + (255 - alpha))
    if mode in ("I;16", "I;16B"):
        wide = gradient(1, 65535)
        image = Image.frombytes(mode, (WIDTH, HEIGHT), wide.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
        return image, rgb(wide / 65535 * 255)
    if mode == "I":
        wide = gradient(1, 65535)
        return Image.fromarray(wide[..., 0].astype(np.int32)), rgb(wide / 65535 * 255)
    if mode == "F":
        return Image.fromarray((one[..., 0] / 255).astype(np.float32)), rgb(one)
    if mode == "CMYK":
        ink = four.astype(float) / 255
        return Image.frombytes("CMYK", (WIDTH, HEIGHT), four.tobytes()), 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    if mode == "YCbCr":
        y, cb, cr = (color[..., i].astype(float) for i in range(3))  # JFIF 1.02
        r = y + 1.402 * (cr - 128)
        g = y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128)
        b = y + 1.772 * (cb - 128)
        return Image.frombytes("YCbCr", (WIDTH, HEIGHT), color.tobytes()), np.clip(np.stack([r, g, b], -1), 0, 255)
    assert mode == "LAB"
    lightness = np.linspace(40, 215, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    tint = gradient(2, 160) - 80  # some of it beyond what sRGB can show
    stored = np.concatenate([lightness[..., None].astype(np.uint8), tint.astype(np.int8).view(np.uint8)], -1)
    reference = lab_to_srgb(np.floor(lightness) / 2.55, tint[..., 0], tint[..., 1])
    return Image.frombytes("LAB", (WIDTH, HEIGHT), stored.tobytes()), reference * 255


MODES = (
    "1", "L", "LA", "P", "PA", "P+tRNS", "L+tRNS", "RGB+tRNS", "RGB", "RGBA", "RGBa", "La",
    "I;16", "I;16B", "I", "F", "CMYK", "YCbCr", "LAB",
)  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", MODES)
def test_picture_in_memory_of_any_layout_and_orientation(mode: str, orientation: int) -> None:
    image, reference = case(mode)
    image.getexif()[ORIENTATION] = orientation
    decoded = decode_image(image)
    assert decoded.mode == "RGB"
    np.testing.assert_allclose(np.asarray(decoded, float), upright(reference, orientation), atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "P+tRNS", "L+tRNS", "RGB+tRNS", "RGB", "RGBA", "I;16"])
def test_png_of_any_layout_and_orientation(mode: str, orientation: int) -> None:
    image, reference = case(mode)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif, **{key: image.info[key] for key in image.info if key == "transparency"})
    np.testing.assert_allclose(np.asarray(decode_image(buffer.getvalue()), float), upright(reference, orientation), atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("format", "options"), [("WEBP", {"lossless": True, "exact": True}), ("JPEG", {"quality": 100})])
def test_other_formats_keep_orientation(format: str, options: dict, orientation: int) -> None:
    stored = np.kron(gradient(1)[:2, :3, 0], np.ones((16, 16))).astype(np.uint8)  # flat blocks survive JPEG
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    Image.fromarray(stored).convert("RGB").save(buffer, format, exif=exif, **options)
    pixels = np.asarray(decode_image(buffer.getvalue()), float)
    np.testing.assert_allclose(pixels, upright(rgb(stored[..., None]), orientation), atol=1)


def test_adobe_cmyk_jpeg_is_not_inverted() -> None:
    """Adobe's files store ink inverted; white paper must stay white, and pure cyan cyan."""
    ink = np.zeros((16, 32, 4), np.uint8)
    ink[:, 16:, 0] = 255
    buffer = io.BytesIO()
    Image.frombytes("CMYK", (32, 16), ink.tobytes()).save(buffer, "JPEG", quality=100)
    assert b"Adobe" in buffer.getvalue()
    pixels = np.asarray(decode_image(buffer.getvalue()), int)
    np.testing.assert_allclose(pixels[:, :15], 255, atol=2)
    np.testing.assert_allclose(pixels[:, 17:], np.broadcast_to([0, 255, 255], (16, 15, 3)), atol=2)


def test_sixteen_bit_ramp_is_a_ramp() -> None:
    """Pillow's own conversion gives 255 almost everywhere."""
    ramp = np.linspace(0, 65535, 256 * 4).reshape(4, 256).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    pixels = np.asarray(decode_image(buffer.getvalue()), float)
    assert abs(pixels.mean() - 127.5) < 0.5
    assert len(np.unique(pixels)) == 256


def test_sixteen_bit_gray_with_a_transparent_value() -> None:
    wide = gradient(1, 65535)[..., 0].astype(np.uint16)
    image = Image.fromarray(wide)
    image.info["transparency"] = int(wide[4, 4])
    assert np.asarray(to_rgb(image))[4, 4].tolist() == [255, 255, 255]


def test_sixteen_bit_color_with_a_transparent_value_does_not_fail() -> None:
    image = Image.new("RGB", (3, 3), (12, 34, 56))
    image.info["transparency"] = (12 * 256, 34 * 256, 56 * 256 + 255)  # as Pillow leaves it beside pixels it made 8-bit
    assert np.asarray(to_rgb(image)).min() == 255


def test_fully_transparent_color_is_white() -> None:
    assert np.asarray(to_rgb(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))).min() == 255


@pytest.mark.parametrize(
    ("top", "mode", "scale"),
    [
        (200, "I", 65535),
        (70_000, "I", 2**31 - 1),
        (0.5, "F", 1),
        (9, "F", 255),
        (300, "F", 65535),
        (1e6, "F", 1e6),
    ],
)
def test_full_scale(top: float, mode: str, scale: float) -> None:
    assert full_scale(np.array([0.0, top]), mode) == scale


def test_float_picture_with_nan_and_infinity() -> None:
    values = np.array([[0.0, 1.0], [np.nan, np.inf]], np.float32)
    assert np.asarray(to_rgb(Image.fromarray(values)))[..., 0].tolist() == [[0, 255], [0, 0]]


def test_the_picture_given_is_left_alone_and_metadata_stays_behind() -> None:
    image = Image.new("RGB", (4, 3), (1, 2, 3))
    image.info["comment"] = "somebody's address"
    assert decode_image(image) is not image
    assert image.info["comment"]
    image.getexif()[ORIENTATION] = 6
    decoded = decode_image(image)
    assert decoded.size == (3, 4)
    assert (image.size, image.getexif()[ORIENTATION]) == ((4, 3), 6)
    assert decoded.info == {}
    assert not dict(decoded.getexif())
    decoded.putpixel((0, 0), (9, 9, 9))
    assert image.getpixel((0, 0)) == (1, 2, 3)


def test_unknown_layout_is_named() -> None:
    class Strange(Image.Image):
        mode = "BGR;15"

    strange = Strange()
    with pytest.raises(ImageError, match="BGR;15") as caught:
        to_rgb(strange)
    assert caught.value.reason is RejectReason.UNSUPPORTED_MODE
