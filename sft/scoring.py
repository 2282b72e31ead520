"""Scorers: whether what a model gave back is right. Exact on the embedded world, by equality of answers anywhere.

    SceneScorer    reads the scene back from the pixels, or the statements from the words (`cm3.scenes`)
    AnswerScorer   compares texts alone: for questions about pictures that nobody can judge exactly

A score is in [0, 1]; `evaluate` averages scores into accuracies.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image

from cm3.core.errors import InputError, UsageError
from cm3.documents.document import Document
from cm3.scenes.read import read_scenes
from cm3.scenes.score import normalize_answer, score_answer, score_caption, score_statement
from cm3.scenes.world import Scene, WorldConfig


class Scorer(Protocol):
    """Judges responses to one task over many documents at once."""

    def score_texts(self, task: str, documents: Sequence[Document], expected: Sequence[str], given: Sequence[str]) -> list[float]:
        """A score for each text that was given."""

    def score_images(
        self, task: str, documents: Sequence[Document], expected: Sequence[str], given: Sequence[Image.Image]
    ) -> list[float]:
        """A score for each picture that was given; `expected` is the caption or instruction it was made from."""


@dataclass(frozen=True)
class SceneScorer:
    """Exact judgement on documents of the embedded world, by the scenes in their meta.

    text_to_image, infilling: 1 when everything the caption states holds in the picture; captioning: the share of
    attributes that are right; vqa: 1 for the right answer; editing: 1 when the picture shows the expected scene.
    """

    world: WorldConfig = field(default_factory=WorldConfig)

    def score_texts(self, task: str, documents: Sequence[Document], expected: Sequence[str], given: Sequence[str]) -> list[float]:
        """Captions against scenes, answers against answers."""
        if task == "captioning":
            return [score_caption(text, _scene(document, "scene")).attributes for document, text in zip(documents, given)]
        return [float(score_answer(text, answer)) for text, answer in zip(given, expected)]

    def score_images(
        self, task: str, documents: Sequence[Document], expected: Sequence[str], given: Sequence[Image.Image]
    ) -> list[float]:
        """Pictures against captions, or against the scene after an edit."""
        scenes = read_scenes(given, self.world)
        if task == "editing":
            return [float(scene == _scene(document, "after")) for scene, document in zip(scenes, documents)]
        return [float(score_statement(scene, caption).all) for scene, caption in zip(scenes, expected)]


@dataclass(frozen=True)
class AnswerScorer:
    """Texts that are the same apart from case, articles and punctuation; pictures are not judged."""

    def score_texts(self, task: str, documents: Sequence[Document], expected: Sequence[str], given: Sequence[str]) -> list[float]:
        """1 for the expected text, else 0."""
        return [float(normalize_answer(text) == normalize_answer(answer)) for text, answer in zip(given, expected)]

    def score_images(
        self, task: str, documents: Sequence[Document], expected: Sequence[str], given: Sequence[Image.Image]
    ) -> list[float]:
        """Raises `UsageError`: there is no exact judgement of any picture."""
        raise UsageError(f"task {task} gives pictures, which only the embedded world can be scored on; use its data")


def majority_answers(questions: Sequence[str], answers: Sequence[str]) -> list[str]:
    """For each question the answer most frequent among questions that start with the same two words: a blind guess."""
    by_kind: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for question, answer in zip(questions, answers, strict=True):
        by_kind[_kind(question)][answer] += 1
    return [by_kind[_kind(question)].most_common(1)[0][0] for question in questions]


def _kind(question: str) -> tuple[str, ...]:
    return tuple(question.lower().split()[:2])


def _scene(document: Document, name: str) -> Scene:
    if name not in document.meta:
        raise InputError(f"document {document.id!r} has no meta[{name!r}]; exact scores need data of the embedded world")
    return Scene.from_json(document.meta[name])
