"""The page that shows every way of decoding: drawn to the end, and no way left out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import decode_gallery
from cm3.decode.options import EXACT, DecodingOptions
from cm3.decode.strategies import STRATEGIES
from cm3.pipeline import CM3Pipeline


def test_the_page_has_every_mode(toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, object]] = []
    decode = CM3Pipeline.decode

    def recorded(pipe, requests, options, *default):
        usual = dict(EXACT) if isinstance(options, DecodingOptions) else {}  # an edit or infilling of one picture
        given.append({name: value for name, value in dict(options).items() if name not in usual or value != usual[name]})
        return decode(pipe, requests, options, *default)

    monkeypatch.setattr(CM3Pipeline, "decode", recorded)
    monkeypatch.setenv("CM3_BENCH_MODEL", str(toy_model))
    monkeypatch.setattr(decode_gallery, "COLUMNS", 1)
    monkeypatch.setattr(sys, "argv", ["decode_gallery", str(tmp_path / "modes.png")])
    assert decode_gallery.main() == 0
    with Image.open(tmp_path / "modes.png") as page:
        assert page.width == 2 * decode_gallery.WIDTH
    assert {name for options in given for name in options} == set(DecodingOptions.model_fields)
    assert {options.get("strategy", "plain") for options in given} | {"guidance"} == set(STRATEGIES.names())
