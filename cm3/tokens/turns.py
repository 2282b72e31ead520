"""Turns: a dialog (or a task with a prompt and a response) as one document with a loss mask.

Training and inference prompts come from the same function, so a model is never asked in a form it was not trained on.
The segments of all turns form one document in the usual layout; every turn boundary is a segment boundary. A trained
turn weighs 1, the delimiters that belong to it included: the model must learn to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from cm3.core.errors import UsageError
from cm3.documents.document import Segment, TextSegment
from cm3.tokens.document_tokenizer import DocumentTokenizer
from cm3.tokens.layout import delimiters
from cm3.tokens.tokenized import TokenizedDocument, assemble
from cm3.tokens.vocab import SpanKind


@dataclass(frozen=True)
class Turn:
    """What one side says: `segments` in order; `train` says whether the model learns to produce it."""

    role: Literal["user", "assistant"]
    segments: tuple[Segment, ...]
    train: bool = False


def encode_turns(turns: Sequence[Turn], tokenizer: DocumentTokenizer, id: str = "") -> TokenizedDocument:
    """The tokens of all turns, with loss weight 1 on trained turns and 0 elsewhere.

    Raises `UsageError` for a turn without segments, `InputError` for a text or picture that cannot be used.
    """
    for index, turn in enumerate(turns):
        if not turn.segments:
            raise UsageError(f"turn {index} ({turn.role}) has no segments; leave it out or give it a text")
    segments = tokenizer.encode_segments([segment for turn in turns for segment in turn.segments])
    weights = [float(turn.train) for turn in turns for _ in turn.segments]
    document = assemble(segments, tokenizer.vocab, id, weights)
    document.loss_weights[0] = 0.0
    return document


def encode_prompt(
    turns: Sequence[Turn], tokenizer: DocumentTokenizer, id: str = "", answer: SpanKind | None = None
) -> TokenizedDocument:
    """What the model sees before it answers: the encoding of `turns`, cut before the first trained turn.

    answer: the kind of segment that will follow, if it is known; a trained turn says it itself. The prompt ends right after
    the delimiters that stand before the first token of that segment (`<break>`, or the mark that opens a picture); of an
    unknown kind, after what closes the last one, as if a text followed. Without a trained turn all turns are the prompt.
    """
    first = next((index for index, turn in enumerate(turns) if turn.train), len(turns))
    given = [replace(turn, train=False) for turn in turns[:first]]
    if first < len(turns) and turns[first].segments:
        answer = "text" if isinstance(turns[first].segments[0], TextSegment) else "image"
    document = encode_turns(given, tokenizer, id)
    last = document.spans[-1].kind if document.spans else None
    closing, opening = delimiters(tokenizer.vocab, last, answer or "text")
    ending = np.asarray([*closing, *opening], np.int64)
    stop = document.spans[-1].stop if document.spans else 0
    return TokenizedDocument(
        document.id,
        np.concatenate([document.token_ids[:stop], ending]),  # (T',)
        np.concatenate([document.grid_positions[:stop], np.zeros_like(ending)]),  # (T',)
        document.spans,
        np.zeros(stop + len(ending), np.float32),
    )


def prompt_ids(turns: Sequence[Turn], tokenizer: DocumentTokenizer, answer: SpanKind | None = None) -> np.ndarray:
    """The token ids (T,) int64 of `encode_prompt`."""
    return encode_prompt(turns, tokenizer, answer=answer).token_ids
