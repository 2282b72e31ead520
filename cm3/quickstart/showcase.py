"""The examples on the page: the first held-out documents, put to the finished model through its own pipeline.

Nothing is chosen by its outcome. On the embedded world a `Judge` says which answers are right; on other pictures nobody can,
and every drawing stands beside the most similar training picture instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cm3.documents.document import Document, ImageSegment
from cm3.documents.readers import read_documents
from cm3.pipeline import CM3Pipeline
from cm3.quickstart.story import Answer, Caption, EditResult, Generation, Infill, NeighborRow, Reconstruction
from sft.formats import read_format
from sft.scoring import SceneScorer

PROMPTS, DRAWINGS, TEXTS, EDITS, INFILLS, QUERIES, RECONSTRUCTIONS = 9, 4, 9, 9, 9, 4, 24
HOLE = (200, 60, 200)  # the colour of what was taken out


@dataclass(frozen=True)
class Judge:
    """Exact judgement where there is one: without a scorer every judgement is None."""

    scorer: SceneScorer | None

    def texts(self, task: str, documents: Sequence[Document], expected: Sequence[str], given: Sequence[str]) -> list[bool | None]:
        """Which texts are right; a caption only when all of its attributes are."""
        if self.scorer is None:
            return [None] * len(given)
        return [score == 1.0 for score in self.scorer.score_texts(task, documents, expected, given)]

    def pictures(
        self, task: str, documents: Sequence[Document], expected: Sequence[str], given: Sequence[Image.Image]
    ) -> list[bool | None]:
        """Which pictures are right."""
        if self.scorer is None:
            return [None] * len(given)
        return [score == 1.0 for score in self.scorer.score_images(task, documents, expected, given)]


def first(source: Path, count: int, format: str | None = None) -> list[Document]:
    """The first `count` documents of a source, in the format of a task when one is named."""
    documents = read_documents(source) if format is None else read_format(source, format)
    return list(islice(documents, count))


def drawings(pipe: CM3Pipeline, documents: Sequence[Document], judge: Judge, seed: int) -> list[Generation]:
    """Several pictures for the captions of the first documents, each with the nearest training picture where nothing judges."""
    shown = []
    for document in documents[:PROMPTS]:
        images = pipe.generate(document.text, n=DRAWINGS, seed=seed)
        correct = judge.pictures("text_to_image", [document] * DRAWINGS, [document.text] * DRAWINGS, images)
        nearest = None if judge.scorer else nearest_picture(pipe, images[0])
        note = "held-out combination" if document.meta.get("held_out") else ""
        shown.append(Generation(document.text, images, correct, note, nearest))
    return shown


def captions(pipe: CM3Pipeline, documents: Sequence[Document], judge: Judge) -> list[Caption]:
    """What the model writes about the pictures of the first documents."""
    chosen = documents[:TEXTS]
    texts = [pipe.caption(document.images[0].load()) for document in chosen]
    correct = judge.texts("captioning", chosen, [document.text for document in chosen], texts)
    return [
        Caption(document.images[0].load(), text, document.text, right) for document, text, right in zip(chosen, texts, correct)
    ]


def answers(pipe: CM3Pipeline, documents: Sequence[Document], judge: Judge) -> list[Answer]:
    """Answers to one question about each picture, the questions of all kinds in turn."""
    chosen = documents[:TEXTS]
    asked = [document.meta["questions"][index % len(document.meta["questions"])] for index, document in enumerate(chosen)]
    given = [pipe.explain(document.images[0].load(), item["question"]) for document, item in zip(chosen, asked)]
    replies = [pipe.tasks["vqa"].reply(text) for text in given]
    correct = judge.texts("vqa", chosen, [item["answer"] for item in asked], replies)
    return [
        Answer(document.images[0].load(), item["question"], answer, item["answer"], right)
        for document, item, answer, right in zip(chosen, asked, given, correct)
    ]


def edits(pipe: CM3Pipeline, documents: Sequence[Document], judge: Judge, seed: int) -> list[EditResult]:
    """What the model makes of the instructions of the first edits."""
    chosen = documents[:EDITS]
    instructions = [str(document.meta["instruction"]) for document in chosen]
    made = [pipe.edit(document.images[0].load(), text, seed=seed) for document, text in zip(chosen, instructions)]
    correct = judge.pictures("editing", chosen, instructions, made)
    return [
        EditResult(document.images[0].load(), text, after, document.images[1].load(), right)
        for document, text, after, right in zip(chosen, instructions, made, correct)
    ]


def infills(pipe: CM3Pipeline, documents: Sequence[Document], judge: Judge, seed: int) -> list[Infill]:
    """A third of each picture (an upper, middle or lower band) taken out and filled in, given the caption."""
    chosen = documents[:INFILLS]
    rows = []
    for index, document in enumerate(chosen):
        original = document.images[0].load()
        third = original.height // 3
        box = (0, index % 3 * third, original.width, (index % 3 + 1) * third)
        filled = pipe.infill(original, box=box, prompt=document.text, seed=seed)
        rows.append((original, _with_hole(original, box), filled, document.text))
    correct = judge.pictures("infilling", chosen, [row[3] for row in rows], [row[2] for row in rows])
    return [Infill(*row, right) for row, right in zip(rows, correct)]


def reconstructions(pipe: CM3Pipeline, documents: Sequence[Document], judge: Judge) -> list[Reconstruction]:
    """Pictures before and after the image tokenizer."""
    tokenizer = pipe.tokenizer.image_tokenizer
    chosen = documents[:RECONSTRUCTIONS]
    if tokenizer is None or not chosen:
        return []
    pixels = tokenizer.preprocess([document.images[0].load() for document in chosen])
    originals = tokenizer.postprocess(pixels)
    made = tokenizer.postprocess(tokenizer.decode(tokenizer.encode(pixels)))
    correct = judge.pictures("text_to_image", chosen, [document.text for document in chosen], made)
    return [Reconstruction(*row) for row in zip(originals, made, correct)]


def neighbors(pipe: CM3Pipeline, documents: Sequence[Document]) -> list[NeighborRow]:
    """What the memory finds for the text of one document, the picture of the next, and so on."""
    rows = []
    for index, document in enumerate(documents[:QUERIES]):
        picture = document.images[0].load() if index % 2 else None
        query: dict[str, Any] = {"image": picture} if picture is not None else {"text": document.text}
        found = pipe.memory.search(**query, k=6)
        entries = [(_shown(hit.document.images), hit.document.text, hit.score) for hit in found]
        rows.append(NeighborRow("asked with a picture" if picture is not None else f"“{document.text}”", picture, entries))
    return rows


def nearest_picture(pipe: CM3Pipeline, image: Image.Image) -> Image.Image | None:
    """The picture of the memory most similar to `image`."""
    return _shown(pipe.memory.search(image=image, k=1)[0].document.images)


def _shown(segments: Sequence[ImageSegment]) -> Image.Image | None:
    return segments[0].load() if segments else None


def _with_hole(image: Image.Image, box: Sequence[int]) -> Image.Image:
    """The picture with a striped region, so that the hole shows on any background."""
    holed = image.copy()
    draw = ImageDraw.Draw(holed)
    x0, y0, x1, y1 = box
    for y, x in np.argwhere(np.add.outer(np.arange(y1 - y0), np.arange(x1 - x0)) % 4 < 2):
        draw.point((x0 + int(x), y0 + int(y)), HOLE)
    return holed
