"""One page, a row for every way of decoding, from the model of `CM3_BENCH_MODEL`: for a look by eye.

CM3_BENCH_MODEL=quickstart/model python -m benchmarks.decode_gallery modes.png

Column i of a row belongs to held-out pair i, whose picture and text are at the top; rows "of anything" belong to no pair.
"""

from __future__ import annotations

import copy
import sys
import textwrap
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from benchmarks.trained_model import held_out_pairs, trained_pipeline
from cm3.decode import Done, ImagePiece
from cm3.decode.int8 import quantize_weights
from cm3.documents.document import Document, TextSegment
from cm3.pipeline import CM3Pipeline

COLUMNS, WIDTH, SIDE, MARGIN = 8, 140, 72, 3
FONT, LINE = ImageFont.load_default(10), 14
LETTERS, LINES = 25, 7  # of a text; what is longer is cut

BLACK = "make the background black"
QUESTION = "how many objects are there?"
GAPS = "a ___ on ___"


class Row(NamedTuple):
    """What one mode made: pictures (None: a text came instead), texts, or texts below pictures."""

    name: str
    pictures: Sequence[Image.Image | None] = ()
    texts: Sequence[str] = ()


def modes(pipe: CM3Pipeline, documents: Sequence[Document]) -> Iterator[Row]:
    """A row for every mode, with one column per document: a text, then its picture."""
    prompts, pictures = [document.text for document in documents], [document.images[0].load() for document in documents]
    yield Row("held-out pictures and texts", pictures, prompts)
    yield from chain(drawn(pipe, prompts), changed(pipe, pictures, prompts), said(pipe, pictures, prompts))
    yield Row("picture of anything", pipe.generate(None, n=len(documents)))
    yield Row("text of anything", texts=pipe.write(n=len(documents), limit=32))
    joint = pipe.imagine(n=len(documents), limit=32)
    yield Row("text and picture of anything", [made.images[0].load() for made in joint], [made.text for made in joint])


def drawn(pipe: CM3Pipeline, prompts: Sequence[str]) -> Iterator[Row]:
    """Pictures of texts."""
    for name, options in (
        ("likeliest", {"temperature": 0.0}),
        ("temperature 1", {"temperature": 1.0, "top_p": 1.0}),
        ("top-p 0.9", {}),
        ("top-k 20", {"top_k": 20, "top_p": 1.0}),
        ("min-p 0.1", {"min_p": 0.1, "top_p": 1.0}),
        ("repetition penalty 1.2", {"repetition_penalty": 1.2}),
        ("guidance 3", {"guidance": 3.0}),
        ("guidance 3, window 16", {"guidance": 3.0, "window": 16}),
        ("CD-K, k 1", {"strategy": "contrastive", "strategy_options": {"k": 1, "alpha": 0.5}}),
        ("CD-K, k 3, scale 0.1", {"strategy": "contrastive", "strategy_options": {"k": 3, "scale": 0.1}}),
        ("CD-K, k 3, scale 1", {"strategy": "contrastive", "strategy_options": {"k": 3}}),
        ("mixed: guidance 3", {"strategy": "mixed"}),
        ("mixed: CD-K, k 1", {"strategy": "mixed", "n": 2}),
        ("best of 8 by the encoder", {"best_of": 8}),
        ("best of 8 by likelihood", {"best_of": 8, "rerank": "likelihood"}),
    ):
        yield Row(name, [pipe.generate(prompt, seed=index, **options)[-1] for index, prompt in enumerate(prompts)])
    small = CM3Pipeline(quantize_weights(copy.deepcopy(pipe.model)), pipe.tokenizer, pipe.tasks, pipe.parts)
    yield Row("int8 weights", [small.generate(prompt, seed=index)[0] for index, prompt in enumerate(prompts)])
    if pipe.parts.memory is not None:
        yield Row("two retrieved documents", [pipe.generate(prompt, retrieve=2, seed=1)[0] for prompt in prompts])
    yield followed("what follows the text, freely", pipe, prompts)


def followed(name: str, pipe: CM3Pipeline, prompts: Sequence[str]) -> Row:
    """The first piece after each text, of whatever kind the model chooses."""
    starts = [Document("start", (TextSegment(prompt),)) for prompt in prompts]
    pieces = [next(pipe.stream(start, seed=index)) for index, start in enumerate(starts)]
    pictures = [piece.image if isinstance(piece, ImagePiece) else None for piece in pieces]
    return Row(name, pictures, ["" if isinstance(piece, ImagePiece | Done) else piece.text for piece in pieces])


def changed(pipe: CM3Pipeline, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Iterator[Row]:
    """Pictures of pictures."""
    width, height = pictures[0].size
    half = (width // 2, 0, width, height)
    corners = [(0, 0, width // 3, height // 3), (2 * width // 3, 2 * height // 3, width, height)]
    disc = Image.new("L", (width, height))
    ImageDraw.Draw(disc).ellipse((width // 4, height // 4, 3 * width // 4, 3 * height // 4), fill=255)
    told = list(zip(pictures, prompts, strict=True))
    yield Row("right half filled in, by the text", [pipe.infill(picture, box=half, prompt=text) for picture, text in told])
    yield Row("right half filled in", [pipe.infill(picture, box=half) for picture in pictures])
    yield Row("two corners filled in", [pipe.infill(picture, box=corners) for picture in pictures])
    yield Row("a mask (disc) filled in", [pipe.infill(picture, disc) for picture in pictures])
    yield Row(BLACK, [pipe.edit(picture, BLACK) for picture in pictures])
    guided = [pipe.edit(picture, BLACK, guidance=3.0, image_guidance=1.5) for picture in pictures]
    yield Row("the same, guidance 3 by the text, 1.5 by the picture", guided)
    yield Row("variation of the picture", [pipe.vary(picture, seed=1)[0] for picture in pictures])


def said(pipe: CM3Pipeline, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Iterator[Row]:
    """Texts of pictures and of texts."""
    by_picture = {"strategy": "guidance", "strategy_options": {"scale": 2.0, "drop": "image"}}
    yield Row("caption", pictures, [pipe.caption(picture) for picture in pictures])
    yield Row("caption, guidance 2 by the picture", texts=[pipe.caption(picture, **by_picture) for picture in pictures])
    yield Row("caption, by infilling", texts=[pipe.caption(picture, infill=True) for picture in pictures])
    yield Row(QUESTION, texts=[pipe.ask(picture, QUESTION) for picture in pictures])
    yield Row("the same, by infilling", texts=[pipe.ask(picture, QUESTION, infill=True) for picture in pictures])
    yield Row(GAPS, texts=[pipe.fill_text(GAPS, picture) for picture in pictures])
    unseen = [pipe.fill_text(GAPS, seed=index, temperature=1.0) for index in range(len(pictures))]
    yield Row("the same, without the picture", texts=unseen)
    yield Row("variation of the text", texts=[pipe.vary_text(text, seed=1)[0] for text in prompts])


def page(rows: Sequence[Row]) -> Image.Image:
    """The rows below one another."""
    strips = [strip(row) for row in rows]
    sheet = Image.new("RGB", (strips[0].width, sum(each.height for each in strips)), "white")
    top = 0
    for each in strips:
        sheet.paste(each, (0, top))
        top += each.height
    return sheet


def strip(row: Row) -> Image.Image:
    """One row: its name, then in every column the picture, and the text below it."""
    name, *texts = [textwrap.fill(text, LETTERS, max_lines=LINES, placeholder=" …") for text in (row.name, *row.texts)]
    below = MARGIN + (SIDE if row.pictures else 0)
    lines = max([len(text.splitlines()) for text in texts], default=0)
    height = max(below + lines * LINE, MARGIN + len(name.splitlines()) * LINE) + MARGIN
    sheet = Image.new("RGB", ((1 + COLUMNS) * WIDTH, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), name, "black", FONT)
    for column, picture in enumerate(row.pictures, start=1):
        if picture is not None:
            sheet.paste(picture.resize((SIDE, SIDE)), (column * WIDTH, MARGIN))
    for column, text in enumerate(texts, start=1):
        draw.text((column * WIDTH, below), text, "black", FONT)
    return sheet


def main() -> int:
    """Write the page; returns the exit code."""
    pipe = trained_pipeline()
    if pipe is None or len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    page(list(modes(pipe, held_out_pairs(COLUMNS)))).save(sys.argv[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
