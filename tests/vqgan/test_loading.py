"""Loading in threads: order, errors in their place, and drafts that are smaller but not much different."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
from PIL import Image

from cm3.documents.document import ImageSegment
from cm3.documents.images import DecodeLimits, decode_image
from cm3.documents.reasons import ImageError, RejectReason
from vqgan.config import PreprocessConfig
from vqgan.loading import ordered_map, picture, picture_array


def _photo(width: int = 416, height: int = 320) -> bytes:
    """A JPEG of smooth shades and some edges."""
    y, x = np.mgrid[:height, :width] / 60
    pixels = np.stack([np.sin(x + y), np.cos(x - y), np.sin(x * y / 4)], -1) * 90 + 128
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (200, 40, 40)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order(workers: int) -> None:
    barrier = threading.Event()

    def slow_first(number: int) -> int:
        if number == 0 and workers > 1:
            barrier.wait(5)
        elif number == 1:
            barrier.set()
        return number * number

    assert list(ordered_map(slow_first, iter(range(30)), workers)) == [number * number for number in range(30)]


def test_an_error_comes_in_its_place_and_ends_the_reading() -> None:
    taken = []

    def items() -> object:
        for number in range(1000):
            taken.append(number)
            yield number

    def odd(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    seen = []
    with pytest.raises(ValueError, match="three"):
        for value in ordered_map(odd, items(), 2):  # type: ignore[arg-type]
            seen.append(value)
    assert seen == [0, 1, 2]
    assert len(taken) < 30


def test_a_draft_is_decoded_smaller_and_looks_the_same() -> None:
    segment = ImageSegment(encoded=_photo())
    assert picture(segment, 64).size == (416, 320)
    assert picture(segment, 64, draft=True).size == (104, 80)  # the least of 1/1, 1/2, 1/4, 1/8 with sides of 64 and more
    exact, draft = (picture_array(segment, 64, PreprocessConfig(), draft).astype(float) for draft in (False, True))
    assert 10 * np.log10(255**2 / np.mean((exact - draft) ** 2)) > 40
    png = io.BytesIO()
    Image.open(io.BytesIO(_photo())).save(png, "PNG")
    assert picture(ImageSegment(encoded=png.getvalue()), 64, draft=True).size == (416, 320)


def test_limits_are_those_of_the_whole_picture() -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(_photo(), DecodeLimits(max_pixels=60_000), draft_side=32)
    assert caught.value.reason is RejectReason.TOO_MANY_PIXELS
