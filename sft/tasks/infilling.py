"""Infilling: `caption, image with <mask:i> ⟶ the masked parts`, in the layout of causal masking (arXiv:2201.07520).

A random band of rows or a random box is masked, fresh in every epoch; in raster order a box is one span for each of its
rows. The loss counts what fills the spans and nothing else.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from cm3.core.errors import InputError
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.sequences.masking import mask_spans
from cm3.tokens.document_tokenizer import DocumentTokenizer
from cm3.tokens.regions import limit_runs
from cm3.tokens.tokenized import TokenizedDocument
from cm3.tokens.turns import Turn, encode_turns
from cm3.tokens.vocab import Vocab
from sft.tasks import roles
from sft.tasks.task import Answer, TaskConfig

Shape = Literal["rows", "box"]


class Infilling(TaskConfig):
    """Fill in what is missing of a picture.

    shapes: what is masked, drawn equally often: a band of whole "rows" or a "box"; smallest, largest: the share of the
    picture's codes that is masked; blank_fraction: how many captions are left out in training.
    """

    data_format: ClassVar[str] = "pairs"
    answer: ClassVar[Answer] = "masked"

    shapes: tuple[Shape, ...] = Field(default=("rows", "box"), min_length=1)
    smallest: float = Field(default=1 / 6, gt=0, le=1)
    largest: float = Field(default=1 / 2, gt=0, le=1)
    blank_fraction: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Infilling:
        if self.smallest > self.largest:
            raise ValueError(f"smallest={self.smallest} is more than largest={self.largest}")
        return self

    def prompt(self, image: ImageSegment, caption: str | None = None) -> list[Turn]:
        """The caption, if there is one, and the picture of which parts are masked afterwards."""
        asked = [Turn("user", (TextSegment(caption),))] if caption is not None else []
        return [*asked, Turn("assistant", (image,), train=True)]

    def turns(self, document: Document, rng: np.random.Generator) -> list[Turn]:
        """The caption (left out now and then), then the whole picture; `rewrite` masks it."""
        caption = roles.caption(document, rng)
        return self.prompt(roles.image(document), None if rng.random() < self.blank_fraction else caption)

    def rewrite(self, example: TokenizedDocument, vocab: Vocab, rng: np.random.Generator) -> TokenizedDocument:
        """Mask a random part of the picture."""
        return mask_image(example, self.draw_mask(vocab, rng), vocab)

    def masked(
        self, image: ImageSegment, cells: np.ndarray, caption: str | None, tokenizer: DocumentTokenizer
    ) -> TokenizedDocument:
        """The masked sequence for filling in `cells` (h, w) bool of `image`; its moved spans hold what was there."""
        return mask_image(encode_turns(self.prompt(image, caption), tokenizer), cells, tokenizer.vocab)

    def draw_mask(self, vocab: Vocab, rng: np.random.Generator) -> np.ndarray:
        """A random mask (h, w) bool over the codes of a picture, true where something is to be filled in."""
        shape = roles.choose(self.shapes, rng)
        share = self.smallest + (self.largest - self.smallest) * rng.random()
        return _rows(vocab.grid_shape, share, rng) if shape == "rows" else _box(vocab, share, rng)


def mask_image(example: TokenizedDocument, mask: np.ndarray, vocab: Vocab) -> TokenizedDocument:
    """The example with the codes of its last picture under `mask` (h, w) bool moved behind it; the loss counts those alone.

    A mask of more separate runs than there are sentinels is closed up where it costs least.
    """
    pictures = [span for span in example.spans if span.kind == "image"]
    if not pictures:
        raise InputError(f"document {example.id!r} has no picture to mask")
    start = pictures[-1].start
    spans = [(start + first, start + stop) for first, stop in runs(limit_runs(mask, vocab.num_masks))]
    return mask_spans(example, spans, vocab, sentinel_weight=0.0, source_weight=0.0)


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """The runs [start, stop) of true values of a mask (h, w) read in raster order."""
    edges = np.flatnonzero(np.diff(mask.reshape(-1).astype(np.int8), prepend=0, append=0))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _rows(grid_shape: tuple[int, int], share: float, rng: np.random.Generator) -> np.ndarray:
    rows, columns = grid_shape
    height = min(max(round(share * rows), 1), rows)
    first = int(rng.integers(rows - height + 1))
    mask = np.zeros((rows, columns), bool)
    mask[first : first + height] = True
    return mask


def _box(vocab: Vocab, share: float, rng: np.random.Generator) -> np.ndarray:
    """About `share` of the codes, of any proportions that fit; at most as many rows as there are sentinels."""
    rows, columns = vocab.grid_shape
    lowest, highest = max(1, int(np.ceil(share * rows))), min(rows, vocab.num_masks)
    height = int(rng.integers(lowest, highest + 1)) if lowest <= highest else highest
    width = min(max(round(share * rows * columns / height), 1), columns)
    first_row, first_column = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
    mask = np.zeros((rows, columns), bool)
    mask[first_row : first_row + height, first_column : first_column + width] = True
    return mask
