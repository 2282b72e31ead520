"""Text to image: `caption ⟶ image`, the same document as in pretraining.

Some captions are blanked, so that the unconditional stream of guidance stays trained (section 2.2 of arXiv:2309.02591).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from cm3.documents.document import Document, TextSegment
from cm3.tokens.tokenized import TokenizedDocument
from cm3.tokens.turns import Turn
from cm3.tokens.vocab import Vocab
from sft.tasks import roles
from sft.tasks.task import Answer, TaskConfig, blank_text


class TextToImage(TaskConfig):
    """Draw what a caption says.

    template: the prompt, with `{caption}` in it; blank_fraction: how many captions become `<mask:0>` in training.
    """

    data_format: ClassVar[str] = "pairs"
    answer: ClassVar[Answer] = "image"

    template: str = "{caption}"
    blank_fraction: float = Field(default=0.1, ge=0, le=1)

    @property
    def masks_texts(self) -> bool:
        """Some captions are."""
        return self.blank_fraction > 0

    def prompt(self, caption: str) -> list[Turn]:
        """What the user says to get a picture of `caption`."""
        return [Turn("user", (TextSegment(self.template.replace("{caption}", caption)),))]

    def turns(self, document: Document, rng: np.random.Generator) -> list[Turn]:
        """The caption, then the picture."""
        picture = roles.image(document, len(document.images) - 1)
        return [*self.prompt(roles.caption(document, rng)), Turn("assistant", (picture,), train=True)]

    def rewrite(self, example: TokenizedDocument, vocab: Vocab, rng: np.random.Generator) -> TokenizedDocument:
        """Blank the caption now and then."""
        return blank_text(example, vocab) if rng.random() < self.blank_fraction else example
