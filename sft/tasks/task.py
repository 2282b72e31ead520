"""What a task is, and how a document becomes one training example of it.

`turns` is the one description of a task: training learns its trained turns, and inference continues what stands before
them (`cm3.tokens.turns.encode_prompt`), so a model is never asked in a form that it was not trained on.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from cm3.core.runfile import RunConfig
from cm3.documents.document import Document
from cm3.tokens.document_tokenizer import DocumentTokenizer
from cm3.tokens.layout import Span, extent
from cm3.tokens.tokenized import TokenizedDocument
from cm3.tokens.turns import Turn, encode_turns
from cm3.tokens.vocab import Vocab

Answer = Literal["text", "image", "masked"]


@runtime_checkable
class Task(Protocol):
    """One task. Implementations are immutable configurations (`RunConfig`) whose fields are the task's options.

    data_format: the data format that fits (a name of `sft.formats.FORMATS`); answer: what the model gives back: a text,
    an image, or the masked parts of an image.
    """

    data_format: ClassVar[str]
    answer: ClassVar[Answer]

    @property
    def masks_texts(self) -> bool:
        """Whether training shows `<mask:0>` in place of whole texts, which guidance relies on."""

    def turns(self, document: Document, rng: np.random.Generator) -> list[Turn]:
        """The document as turns, the responses trained; `rng` chooses wordings. Raises `InputError` if a part is missing."""

    def rewrite(self, example: TokenizedDocument, vocab: Vocab, rng: np.random.Generator) -> TokenizedDocument:
        """What is left to do on the tokens of the turns: masking, blanking a condition, or nothing."""

    def reply(self, text: str) -> str:
        """What counts of a text that the model gave: all of it, or what stands behind its explanation."""

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:
        """The options by name (pydantic's own method)."""


class TaskConfig(RunConfig):
    """What most tasks share: no text is masked, after the turns nothing is left to do, and all of a text counts."""

    @property
    def masks_texts(self) -> bool:
        """No text is."""
        return False

    def rewrite(self, example: TokenizedDocument, vocab: Vocab, rng: np.random.Generator) -> TokenizedDocument:
        """The example as it is."""
        return example

    def reply(self, text: str) -> str:
        """The text as it is."""
        return text


def encode_example(task: Task, document: Document, tokenizer: DocumentTokenizer, rng: np.random.Generator) -> TokenizedDocument:
    """One training example: the tokens of the task's turns, loss weights above 0 on the response alone."""
    example = encode_turns(task.turns(document, rng), tokenizer, document.id)
    return task.rewrite(example, tokenizer.vocab, rng)


def blank_text(example: TokenizedDocument, vocab: Vocab) -> TokenizedDocument:
    """The example with every text of its prompt replaced by `<mask:0>`: what guidance takes as "no condition".

    Section 2.2 of arXiv:2309.02591. A text is of the prompt when none of its tokens is trained. Where marks enclose pictures
    (Chameleon) the text goes altogether, as in its own stream without condition.
    """
    ids, grid, weights, spans = [], [], [], []
    end, shift = 0, 0
    stand_in = np.array([vocab.mask_id(0)] if vocab.image_marks is None else [], np.int64)
    for span in example.spans:
        blank = span.kind == "text" and not example.loss_weights[span.start : span.stop].any()
        start, stop = span.start + shift, span.stop + shift
        if blank:
            ids += [example.token_ids[end : span.start], stand_in]
            grid += [example.grid_positions[end : span.start], np.zeros_like(stand_in)]
            weights += [example.loss_weights[end : span.start], np.zeros(len(stand_in), np.float32)]
            end = span.stop if len(stand_in) else extent(example.token_ids, span, vocab)[1]
            shift += len(stand_in) - (end - span.start)
            stop = start + len(stand_in)
        if stop > start:
            spans.append(Span(span.kind, start, stop))
    return TokenizedDocument(
        example.id,
        np.concatenate([*ids, example.token_ids[end:]]),  # (T',)
        np.concatenate([*grid, example.grid_positions[end:]]),  # (T',)
        tuple(spans),
        np.concatenate([*weights, example.loss_weights[end:]]),  # (T',)
    )
