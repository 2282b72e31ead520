"""Turns: a dialog (or a task with a prompt and a response) as one document with a loss mask.

Training and inference prompts come from the same function, so a model is never asked in a form it was not trained on.
The segments of all turns form one document in the usual layout; every turn boundary is a segment boundary. A trained
turn weighs 1, its inner `<break>`s and the `<break>` or `<eos>` that closes it included: the model must learn to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from cm3.core.errors import UsageError
from cm3.documents.document import Segment
from cm3.tokens.document_tokenizer import DocumentTokenizer
from cm3.tokens.tokenized import TokenizedDocument, assemble


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


def encode_prompt(turns: Sequence[Turn], tokenizer: DocumentTokenizer, id: str = "") -> TokenizedDocument:
    """What the model sees before it answers: the encoding of `turns`, cut before the first trained turn.

    It ends right after the `<break>` that stands before the first token to generate. Without a trained turn all turns
    are the prompt; without any turn before the answer it is `<bos>` alone.
    """
    first = next((index for index, turn in enumerate(turns) if turn.train), len(turns))
    given = [replace(turn, train=False) for turn in turns[:first]]
    document = encode_turns(given, tokenizer, id)
    if not given:
        return _cut(document, 1)
    document.token_ids[-1] = tokenizer.vocab.break_id  # the <eos> of the given turns is where the answer begins
    return document


def prompt_ids(turns: Sequence[Turn], tokenizer: DocumentTokenizer) -> np.ndarray:
    """The token ids (T,) int64 of `encode_prompt`."""
    return encode_prompt(turns, tokenizer).token_ids


def _cut(document: TokenizedDocument, stop: int) -> TokenizedDocument:
    return TokenizedDocument(
        document.id, document.token_ids[:stop], document.grid_positions[:stop], (), document.loss_weights[:stop]
    )
