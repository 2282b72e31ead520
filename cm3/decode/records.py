"""What decoding gives back: the tokens of an answer, and the texts and pictures they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cm3.core.errors import UsageError
from cm3.core.protocols import DecodingStrategy
from cm3.decode.grammar import Answer, Reason
from cm3.decode.sampling import Sampling
from cm3.tokens import Vocab

if TYPE_CHECKING:
    from PIL.Image import Image

    from cm3.decode.prompts import Prompt


@dataclass(frozen=True, eq=False)
class Request:
    """One answer to generate: `prompt`, `answer` (the plan), and the pair (seed, picture) that fixes all its randomness.

    strategy, sampling: how this one is drawn, where it differs from the others of its batch (None: as they are).
    """

    prompt: Prompt
    answer: Answer
    seed: int = 0
    picture: int = 0
    strategy: DecodingStrategy | None = None
    sampling: Sampling | None = None


@dataclass(frozen=True, eq=False)
class Generation:
    """The answer to one request.

    token_ids: (n,) int64 as drawn, closing tokens included; reason: "stop" when the answer is complete, "length" when a
    limit cut it.
    """

    token_ids: np.ndarray
    reason: Reason


@dataclass(frozen=True)
class TextPiece:
    """A generated text and its token ids."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ImagePiece:
    """A generated picture: codes (h, w) int64 in [0, codebook_size); `image` once the image tokenizer has decoded them."""

    codes: np.ndarray
    image: Image | None = None


@dataclass(frozen=True)
class Done:
    """The end of an answer: why, and how many tokens and pictures it has."""

    reason: Reason
    tokens: int
    images: int


Piece = TextPiece | ImagePiece | Done


def codes_of(generation: Generation, vocab: Vocab) -> np.ndarray:
    """The codes (h, w) int64 of an answer that is one picture. Raises `UsageError` for any other answer."""
    ids = generation.token_ids
    if len(ids) != vocab.num_image_tokens or not vocab.is_image(ids).all():
        raise UsageError(f"the answer is not one picture: it has {len(ids)} tokens, a picture has {vocab.num_image_tokens}")
    return vocab.codes(ids).reshape(vocab.grid_shape)
