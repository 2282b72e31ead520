"""Captioning: `image, "describe" ⟶ caption`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.tokens.turns import Turn
from sft.tasks import roles
from sft.tasks.task import Answer, TaskConfig


class Captioning(TaskConfig):
    """Say what a picture shows. instructions: wordings of the request; inference uses the first."""

    data_format: ClassVar[str] = "pairs"
    answer: ClassVar[Answer] = "text"

    instructions: tuple[str, ...] = Field(default=("describe",), min_length=1)

    def prompt(self, image: ImageSegment, rng: np.random.Generator | None = None) -> list[Turn]:
        """What the user says to get a caption of `image`."""
        instruction = self.instructions[0] if rng is None else roles.choose(self.instructions, rng)
        return [Turn("user", (image, TextSegment(instruction)))]

    def turns(self, document: Document, rng: np.random.Generator) -> list[Turn]:
        """The picture and the request, then the caption."""
        answer = TextSegment(roles.caption(document, rng))
        return [*self.prompt(roles.image(document), rng), Turn("assistant", (answer,), train=True)]
