"""Visual question answering: `question, image ⟶ answer`, and further questions about the same picture as further turns.

    {"question": "is there a red circle?", "explanation": "red square", "answer": "no"}   ⟶   red square → no

A question may come with an explanation, which then stands before the answer (CM3Leon's ScienceQA template, table 5: "Let's
think step-by-step: {explanation} So the answer is {answer}"): a small model finds in two steps what it does not find in one.
The question stands first (as text does in CM3Leon's templates, arXiv:2309.02591 table 5), so the picture is read with the
question in mind. Further questions share the picture, as in a dialog: it costs many more tokens than a question.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.tokens.turns import Turn
from sft.tasks import roles
from sft.tasks.task import Answer, TaskConfig

EXPLAINED_BY = " → "  # between explanation and answer


class VQA(TaskConfig):
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
        return [Turn("user", (text,) if image is None else (text, image))]

    def turns(self, document: Document, rng: np.random.Generator) -> list[Turn]:
        """A random question, the picture and the answer, then further questions."""
        listed = roles.questions(document)
        picture: ImageSegment | None = roles.image(document)
        turns: list[Turn] = []
        for index in rng.permutation(len(listed))[: self.questions_per_image]:
            asked = listed[index]
            answer = TextSegment(EXPLAINED_BY.join([asked.explanation, asked.answer] if asked.explanation else [asked.answer]))
            turns += [*self.prompt(picture, asked.question), Turn("assistant", (answer,), train=True)]
            picture = None
        return turns

    def reply(self, text: str) -> str:
        """The answer without its explanation."""
        return text.rpartition(EXPLAINED_BY)[2]
