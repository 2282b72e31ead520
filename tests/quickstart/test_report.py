"""The page holds everything it was told, escapes it, and reaches for nothing outside itself."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

from PIL import Image

from cm3.quickstart.html import bar, chart, escape, table
from cm3.quickstart.report import render_report
from cm3.quickstart.story import (
    Answer,
    Caption,
    EditResult,
    Generation,
    Infill,
    NeighborRow,
    Reconstruction,
    Story,
    TaskScore,
)

HOSTILE = "<script>alert('x')</script> & \"quotes\""


def story() -> Story:
    picture = Image.new("RGB", (6, 6), "red")
    return Story(
        title="a title",
        source="a source",
        command="cm3 quickstart",
        versions={"torch": "2"},
        stages={"data": {"seconds": 1.5, "peak_memory_bytes": 1 << 20}},
        tasks={"vqa": TaskScore(0.9, 0.85, 0.94, 256, 0.3, None, "held out")},
        real={"psnr_db": 30.5},
        curves={"tuned": {"step": [1, 2, 3], "loss": [3.0, 2.0, math.nan], "bits_per_text_token": [2.0, 1.0, 0.5]}},
        reconstructions=[Reconstruction(picture, picture, True)],
        generations=[Generation(HOSTILE, [picture, picture], [True, False], "held-out combination", picture)],
        captions=[Caption(picture, "a text", "a reference", False)],
        answers=[Answer(picture, "how many?", "two", "three", False)],
        edits=[EditResult(picture, "make it blue", picture, picture, True)],
        infills=[Infill(picture, picture, picture, "a caption", None)],
        neighbors=[NeighborRow("a query", picture, [(picture, "found", 0.5), (None, "text alone", 0.4)])],
    )


class _Balance(HTMLParser):
    """Fails on tags that are not closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """<path …/> closes itself."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_self_contained() -> None:
    page = render_report(story())
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "url(" not in page
    assert "<script" not in page


def test_the_page_shows_everything_and_escapes_it() -> None:
    page = render_report(story())
    for text in ("90.0%", "85.0% – 94.0%", "30.5", "make it blue", "expected: three", "held-out combination", "1 of 2 right"):
        assert text in page
    assert escape(HOSTILE) in page
    assert page.count("data:image/png;base64,") == 15


def test_an_empty_story_has_no_empty_sections() -> None:
    page = render_report(Story("t", "s", "c", {}, {"data": {"seconds": 1, "peak_memory_bytes": 1}}))
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Stages"]


def test_pieces() -> None:
    assert "&lt;b&gt;" in table(["<b>"], [["x"]])
    assert 'class="chance"' not in bar(0.5, 0.4, 0.6, None, None)
    assert chart("t", {"loss": ([1.0], [2.0])}, "loss") == ""
    drawn = chart("t", {"loss": ([1.0, 2.0, 3.0], [2.0, math.nan, 1.0])}, "loss")
    assert len(re.findall(r"[\d.]+,[\d.]+", drawn.split("polyline")[1].split("/>")[0])) == 2


def test_marks_are_explained_where_there_are_any() -> None:
    explained = "describe a combination that no training picture shows"
    assert explained in render_report(story())
    plain = [replace(generation, note="") for generation in story().generations]
    assert explained not in render_report(replace(story(), generations=plain))
