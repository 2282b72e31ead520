"""Sampling from what the model says about the prompt as it stands."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cm3.decode.prompts import Prompt, Stream


@dataclass(frozen=True)
class Plain:
    """One stream; its logits as they are."""

    def streams(self, prompt: Prompt) -> list[Stream]:
        """The prompt."""
        return [prompt.stream()]

    def combine(self, logits: Tensor) -> Tensor:
        """(B, 1, V) → (B, V)."""
        return logits[:, 0]
