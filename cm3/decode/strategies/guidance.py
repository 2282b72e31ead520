"""Classifier-free guidance on tokens: move the logits away from what the model says without the condition.

    two streams     l = l_unc + scale · (l_cond − l_unc)                                     arXiv:2309.02591 equations 1–2
    three streams   l = l_unc + image_scale · (l_img − l_unc) + scale · (l_full − l_img)     arXiv:2211.09800, for editing

The stream without text has `<mask:0>` in its place, which training with causal masking contains.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cm3.core.errors import UsageError
from cm3.decode.prompts import Prompt, Stream
from cm3.decode.strategies.scales import require_scale
from cm3.tokens.tokenized import SpanKind


@dataclass(frozen=True)
class Guidance:
    """scale: weight of the text condition (1: none, exactly the conditional stream); image_scale: with a number, also guide
    by the pictures of the prompt, as for editing; drop: the kind of segment that is the condition ("image" for captions)."""

    scale: float = 3.0
    image_scale: float | None = None
    drop: SpanKind = "text"

    def __post_init__(self) -> None:
        require_scale("guidance scale", self.scale)
        if self.image_scale is not None:
            require_scale("guidance image_scale", self.image_scale)

    def streams(self, prompt: Prompt) -> list[Stream]:
        """The prompt, the prompt without its text, and with `image_scale` no prompt at all."""
        conditional = prompt.stream()
        if self.image_scale is not None:
            if prompt.infills:
                raise UsageError("image_scale guides by the pictures of a prompt; an infilling prompt has none to leave out")
            return [conditional, prompt.without("text"), prompt.unconditional()]
        return [conditional] if self.scale == 1.0 else [conditional, prompt.without(self.drop)]

    def combine(self, logits: Tensor) -> Tensor:
        """(B, S, V) → (B, V)."""
        if logits.shape[1] == 1:
            return logits[:, 0]
        if self.image_scale is None:
            conditional, without = logits.unbind(1)
            return without + self.scale * (conditional - without)
        full, image, without = logits.unbind(1)
        return without + self.image_scale * (image - without) + self.scale * (full - image)
