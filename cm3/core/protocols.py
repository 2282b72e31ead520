"""The seams between packages as protocols: what a stage needs of another, and nothing more.

Each protocol has one contract test in `tests/contracts/` that every implementation passes. Shape letters: B batch,
C channels, Y X pixel rows and columns, h w code rows and columns, S streams, V vocabulary, N candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@runtime_checkable
class ImageTokenizer(Protocol):
    """Pixels to discrete codes and back."""

    @property
    def codebook_size(self) -> int: ...
    @property
    def grid_shape(self) -> tuple[int, int]: ...
    @property
    def image_size(self) -> int: ...

    def preprocess(self, images: Sequence[Image]) -> Tensor:
        """PIL pictures of any size → pixels (B, 3, Y, X) float32 in [-1, 1]."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, Y, X) float in [-1, 1] → codes (B, h, w) int64 in [0, codebook_size)."""

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) int64 → pixels (B, 3, Y, X) float32 in [-1, 1]."""

    def postprocess(self, pixels: Tensor) -> list[Image]:
        """Pixels (B, 3, Y, X) float in [-1, 1] → RGB pictures."""


@runtime_checkable
class TextTokenizer(Protocol):
    """Text to token ids and back, exactly invertible; user text never yields a special id."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def save(self, folder: Path) -> None: ...


@runtime_checkable
class Retriever(Protocol):
    """Documents near a query; the element type is `cm3.documents.Neighbor`."""

    def search(self, text: str | None = None, image: Image | None = None, k: int = 1) -> list[Any]: ...


@runtime_checkable
class Reranker(Protocol):
    """Scores candidate pictures for one text; higher is better."""

    def score(self, text: str, images: Sequence[Image]) -> Tensor:
        """(N,) float32 scores of N pictures for `text`."""


@runtime_checkable
class DecodingStrategy(Protocol):
    """How the streams of one request become one distribution over the next token."""

    def streams(self, prompt: Any) -> Sequence[Any]:
        """The conditionings of `prompt` that are decoded side by side (S of them, the conditional one first)."""

    def combine(self, logits: Tensor) -> Tensor:
        """Logits (B, S, V) of the S streams → logits (B, V) to sample from; forbidden tokens are -inf."""
