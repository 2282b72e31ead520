"""The records: what they hold and how a picture is found in them."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cm3.core.errors import InputError
from cm3.documents import Document, ImageError, ImageSegment, TextSegment

RED = Image.new("RGB", (6, 5), (255, 0, 0))
GREEN = Image.new("RGB", (6, 5), (0, 255, 0))
BLUE = Image.new("RGB", (6, 5), (0, 0, 255))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_pair_is_a_caption_and_its_picture(tmp_path: Path) -> None:
    document = Document.pair("a", "a red thing", RED, {"source": "here"})
    assert document.segments[0] == TextSegment("a red thing")
    assert (document.text, len(document.images), document.meta["source"]) == ("a red thing", 1, "here")
    (tmp_path / "b.png").write_bytes(png(BLUE))
    assert Document.pair("b", "x", tmp_path / "b.png").images[0].load().getpixel((0, 0)) == (0, 0, 255)


def test_text_joins_the_segments_in_order() -> None:
    document = Document("a", (TextSegment("one"), ImageSegment(image=RED), TextSegment("two")))
    assert document.text == "one\ntwo"
    assert Document("b", (ImageSegment(image=RED),)).text == ""


def test_the_decoded_picture_wins_then_bytes_then_the_file(tmp_path: Path) -> None:
    path = tmp_path / "b.png"
    path.write_bytes(png(BLUE))
    segment = ImageSegment(image=RED, encoded=png(GREEN), path=path)
    assert segment.load().getpixel((0, 0)) == (255, 0, 0)
    assert dataclasses.replace(segment, image=None).load().getpixel((0, 0)) == (0, 255, 0)
    assert dataclasses.replace(segment, image=None, encoded=None).load().getpixel((0, 0)) == (0, 0, 255)


def test_codes_alone_are_no_picture() -> None:
    codes = np.zeros((2, 2), np.int64)
    held = ({"image": RED}, {"encoded": png(RED)}, {"path": Path("a.png")}, {"image": RED, "codes": codes})
    assert all(ImageSegment(**holders).has_picture for holders in held)  # type: ignore[arg-type]
    assert not ImageSegment(codes=codes).has_picture
    assert not ImageSegment().has_picture


def test_load_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only codes"):
        ImageSegment(codes=np.zeros((2, 2), np.int64)).load()
    with pytest.raises(InputError, match="holds no picture"):
        ImageSegment().load()
    with pytest.raises(ImageError, match="no picture at"):
        ImageSegment(path=tmp_path / "none.png").load()


def test_records_are_frozen_and_hashable() -> None:
    document = Document.pair("a", "x", RED, {"k": [1]})
    assert len({document, document}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        document.id = "b"  # type: ignore[misc]
