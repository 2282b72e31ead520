"""Visual question answering: `image, question ⟶ answer`, and further questions about the same picture as further turns.

A picture costs many more tokens than a question, so several questions share one: that trains more answers per token, and
it is what a dialog looks like.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from cm3.core.runfile import RunConfig
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.tokens.tokenized import TokenizedDocument
from cm3.tokens.turns import Turn
from cm3.tokens.vocab import Vocab
from sft.tasks import roles
from sft.tasks.task import Answer


class VQA(RunConfig):
    """Answer questions about a picture.

    template: the prompt, with `{question}` in it; questions_per_image: at most so many of a document's questions stand in
    one example, drawn anew each time.
    """

    data_format: ClassVar[str] = "vqa"
    answer: ClassVar[Answer] = "text"

    template: str = "{question}"
    questions_per_image: int = Field(default=3, ge=1)

    def prompt(self, image: ImageSegment | None, question: str) -> list[Turn]:
        """What the user says to ask `question` about `image` (None: about the picture that stands before)."""
        text = TextSegment(self.template.replace("{question}", question))
        return [Turn("user", (text,) if image is None else (image, text))]

    def turns(self, document: Document, rng: np.random.Generator) -> list[Turn]:
        """The picture with a random question and its answer, then further ones."""
        listed = roles.questions(document)
        picture: ImageSegment | None = roles.image(document)
        turns: list[Turn] = []
        for index in rng.permutation(len(listed))[: self.questions_per_image]:
            question, answer = listed[index]
            turns += [*self.prompt(picture, question), Turn("assistant", (TextSegment(answer),), train=True)]
            picture = None
        return turns

    def rewrite(self, example: TokenizedDocument, vocab: Vocab, rng: np.random.Generator) -> TokenizedDocument:
        """Nothing to do."""
        return example
