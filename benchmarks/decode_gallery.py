"""One page of pictures, a row for every way of decoding, from the model of `CM3_BENCH_MODEL`: for a look by eye.

CM3_BENCH_MODEL=quickstart/model python -m benchmarks.decode_gallery modes.png
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw

from benchmarks.trained_model import held_out_pairs, trained_pipeline
from cm3.documents.document import Document
from cm3.pipeline import CM3Pipeline

COLUMNS, SIDE, MARGIN, LABEL = 8, 96, 4, 220
Shown = tuple[str, Sequence[Image.Image]]


def modes(pipe: CM3Pipeline, documents: Sequence[Document]) -> Iterator[Shown]:
    """A name and one picture per document for every mode."""
    prompts, pictures = [document.text for document in documents], [document.images[0].load() for document in documents]
    yield "held-out pictures", pictures
    for name, options in (
        ("likeliest", {"temperature": 0.0}),
        ("plain, temperature 1", {"temperature": 1.0, "top_p": 1.0}),
        ("top-p 0.9", {}),
        ("top-k 20", {"top_k": 20, "top_p": 1.0}),
        ("min-p 0.1", {"min_p": 0.1, "top_p": 1.0}),
        ("guidance 3", {"guidance": 3.0}),
        ("guidance 3, window 16", {"guidance": 3.0, "window": 16}),
        ("CD-K, k 1", {"strategy": "contrastive", "strategy_options": {"k": 1, "alpha": 0.5}}),
        ("CD-K, k 3", {"strategy": "contrastive", "strategy_options": {"k": 3}}),
        ("mixed", {"strategy": "mixed"}),
        ("best of 8 by the encoder", {"best_of": 8}),
        ("best of 8 by likelihood", {"best_of": 8, "rerank": "likelihood"}),
    ):
        yield name, [pipe.generate(prompt, seed=index, **options)[0] for index, prompt in enumerate(prompts)]
    if pipe.parts.memory is not None:
        yield "two retrieved documents", [pipe.generate(prompt, retrieve=2, seed=1)[0] for prompt in prompts]
    width, height = pictures[0].size
    half = (width // 2, 0, width, height)
    yield "right half filled in", [pipe.infill(picture, box=half, prompt=text) for picture, text in zip(pictures, prompts)]
    corners = [(0, 0, width // 3, height // 3), (2 * width // 3, 2 * height // 3, width, height)]
    yield "two corners filled in", [pipe.infill(picture, box=corners) for picture in pictures]
    yield "edit: make the background black", [pipe.edit(picture, "make the background black") for picture in pictures]
    yield "variation", [pipe.vary(picture)[0] for picture in pictures]
    yield "of anything", pipe.generate(None, n=len(pictures))
    yield "text and picture of anything", [made.images[0].load() for made in pipe.imagine(n=len(pictures), limit=24)]


def page(shown: Sequence[Shown]) -> Image.Image:
    """The rows with their names."""
    step = SIDE + MARGIN
    sheet = Image.new("RGB", (LABEL + COLUMNS * step, len(shown) * step + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, pictures) in enumerate(shown):
        draw.text((8, row * step + SIDE // 2), name, fill="black")
        for column, picture in enumerate(pictures):
            resized = picture.resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(resized, (LABEL + column * step, MARGIN + row * step))
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
