"""Best of n: candidates, who judges them, and the choice (arXiv:2309.02591 takes the best of 8 by CLIP).

A judge orders the candidates for a prompt: a `Reranker` by their pixels, the model itself by how probable it finds the prompt
as a caption of their codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from PIL import Image

from cm3.core.counts import require_positive
from cm3.core.errors import UsageError
from cm3.core.protocols import Reranker
from cm3.decode import Ranking, answer_log_prob, rank, rank_by_reranker
from cm3.decode.options import DRAWING, EXACT, DecodingOptions, chosen_options
from cm3.documents.document import ImageSegment, TextSegment
from cm3.model import CM3ForCausalLM
from cm3.tokens.document_tokenizer import DocumentTokenizer
from cm3.tokens.turns import Turn


@dataclass(frozen=True, eq=False)
class DrawnPicture:
    """A picture with how it came about: codes (h, w) int64, the pair (seed, i) it was drawn with, the judge's score.

    candidates: all that it was chosen from, itself among them, in the order they were drawn; empty without a choice.
    """

    image: Image.Image
    codes: np.ndarray
    seed: tuple[int, int]
    score: float | None = None
    candidates: tuple[DrawnPicture, ...] = ()


@dataclass(frozen=True)
class Choice:
    """How many pictures are asked for, and of how many candidates each is the best.

    n: pictures; best_of: candidates of each, candidate j of picture i is drawn with (seed, i · best_of + j); rerank: who
    judges: "encoder" (CLIP), "likelihood" (how well the model itself says the words of the request), or a `Reranker`; by default
    the encoder. Raises `UsageError` for anything else, and for a judge of single candidates.
    """

    n: int = 1
    best_of: int = 1
    rerank: str | Reranker | None = None

    def __post_init__(self) -> None:
        require_positive(n=self.n, best_of=self.best_of)
        if not (self.rerank in (None, "encoder", "likelihood") or isinstance(self.rerank, Reranker)):
            raise UsageError(f"rerank is {self.rerank!r}; expected 'encoder', 'likelihood' or a Reranker")
        if self.rerank is not None and self.best_of == 1:
            raise UsageError("rerank judges candidates, and best_of is 1; ask for more of them (best_of=8), or leave rerank out")

    def require_words(self, said: str | None) -> None:
        """Raise `UsageError` where candidates would be judged by words that were not `said`."""
        if self.best_of > 1 and said is None:
            raise UsageError("best_of chooses by the prompt; give a prompt, or leave best_of at 1")

    @classmethod
    def among(cls, options: Mapping[str, Any]) -> tuple[Choice, DecodingOptions]:
        """The choice that `options` hold, and with the others how to draw: a picture that is the only one is the likeliest."""
        names = {field.name for field in fields(cls)}
        choice = cls(**{name: value for name, value in options.items() if name in names})
        others = {name: value for name, value in options.items() if name not in names}
        return choice, chosen_options(others, EXACT if choice.candidates == 1 else DRAWING)

    @property
    def candidates(self) -> int:
        """How many pictures are drawn."""
        return self.n * self.best_of


def require_one(options: Mapping[str, Any]) -> None:
    """Raise `UsageError` where several pictures are asked of a call that gives one."""
    if options.get("n", 1) != 1:
        raise UsageError(f"n is {options['n']} in a call that gives one picture; ask draw_edits or draw_infills for several")


Judge = Callable[[str, Sequence[DrawnPicture]], Ranking]


def by_reranker(reranker: Reranker) -> Judge:
    """Judge by what `reranker` says of the pictures."""
    return lambda prompt, candidates: rank_by_reranker(prompt, [picture.image for picture in candidates], reranker)


def by_likelihood(model: CM3ForCausalLM, tokenizer: DocumentTokenizer, captioning: Any) -> Judge:
    """Judge by log p(prompt | picture) under the model, asked in the words of its `captioning` task."""

    def judge(prompt: str, candidates: Sequence[DrawnPicture]) -> Ranking:
        said = Turn("assistant", (TextSegment(prompt),), train=True)
        dialogs = [[*captioning.prompt(ImageSegment(codes=picture.codes)), said] for picture in candidates]
        return rank(answer_log_prob(model, tokenizer, dialogs))

    return judge


def best_of(count: int, prompt: str, candidates: Sequence[DrawnPicture], judge: Judge) -> list[DrawnPicture]:
    """The best of every `count` candidates, which it carries with their scores."""
    chosen = []
    for start in range(0, len(candidates), count):
        group = candidates[start : start + count]
        ranking = judge(prompt, group)
        judged = tuple(replace(picture, score=score) for picture, score in zip(group, ranking.scores, strict=True))
        chosen.append(replace(judged[ranking.best], candidates=judged))
    return chosen
