"""Half of the pictures by guidance and top-p, half by CD-K: candidates that differ more than those of either alone.

The paper finds both alike in quality but complementary: best-of-n over the mixture keeps improving where each alone
stagnates (arXiv:2309.02591 section 3.2 and figure 4). Pictures with an even number are drawn by guidance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from cm3.core.protocols import DecodingStrategy
from cm3.decode.prompts import Prompt, Stream
from cm3.decode.sampling import Sampling
from cm3.decode.strategies.contrastive import Contrastive
from cm3.decode.strategies.guidance import Guidance


@dataclass(frozen=True)
class Mixed:
    """scale: of the guidance; top_p: of the pictures drawn by guidance (None: that of the sampling, or 0.9 where it keeps all);
    k, alpha, contrast: `k`, `alpha` and `scale` of the CD-K half, which is drawn without top-p."""

    scale: float = 3.0
    top_p: float | None = None
    k: int = 1
    alpha: float = 0.1
    contrast: float = 1.0

    def __post_init__(self) -> None:
        self.for_picture(0, Sampling())  # whatever is out of range is refused here
        self.for_picture(1, Sampling())

    def for_picture(self, picture: int, sampling: Sampling) -> tuple[DecodingStrategy, Sampling]:
        """The strategy and the sampling of picture number `picture`."""
        if picture % 2:
            return Contrastive(self.k, self.alpha, self.contrast), replace(sampling, top_p=1.0)
        unless_given = 0.9 if sampling.top_p == 1.0 else sampling.top_p
        top_p = unless_given if self.top_p is None else self.top_p
        return Guidance(self.scale), replace(sampling, top_p=top_p)

    def streams(self, prompt: Prompt) -> list[Stream]:
        """The streams of picture 0."""
        return Guidance(self.scale).streams(prompt)

    def combine(self, logits: Tensor) -> Tensor:
        """(B, S, V) → (B, V), as for picture 0."""
        return Guidance(self.scale).combine(logits)
