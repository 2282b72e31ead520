"""What the report tells, as plain records: the seam between the evaluation that fills them and the page that shows them.

Pictures are PIL, RGB. `correct` is True or False where an exact judgement exists (the embedded world) and None on pictures
nobody can judge exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image


@dataclass(frozen=True)
class Reconstruction:
    """A held-out picture before and after the image tokenizer."""

    original: Image
    reconstruction: Image
    correct: bool | None = None


@dataclass(frozen=True)
class Generation:
    """Pictures for one prompt: `images[i]` was judged `correct[i]`; `note` says what is special ("held-out combination: …");
    `nearest` is the most similar training picture, to show what was not copied."""

    prompt: str
    images: Sequence[Image]
    correct: Sequence[bool | None]
    note: str = ""
    nearest: Image | None = None


@dataclass(frozen=True)
class Caption:
    """A picture, the text the model wrote for it, and the text that came with it."""

    image: Image
    text: str
    reference: str
    correct: bool | None = None


@dataclass(frozen=True)
class Answer:
    """A picture, a question, the model's answer and the expected one."""

    image: Image
    question: str
    answer: str
    expected: str
    correct: bool | None = None


@dataclass(frozen=True)
class EditResult:
    """A picture before an instruction, what the model made of it, and what was expected (None: unknown)."""

    before: Image
    instruction: str
    after: Image
    expected: Image | None
    correct: bool | None = None


@dataclass(frozen=True)
class Infill:
    """A picture with a part taken out (`masked`, the hole painted) and filled in again, with the caption it was given."""

    original: Image
    masked: Image
    filled: Image
    prompt: str
    correct: bool | None = None


@dataclass(frozen=True)
class NeighborRow:
    """A query (text, picture or both) and what the memory bank found: (picture or None, text, score)."""

    query_text: str
    query_image: Image | None
    neighbors: Sequence[tuple[Image | None, str, float]]


@dataclass(frozen=True)
class TaskScore:
    """A share of right answers: `accuracy` in [0, 1] over `n`, its 95 % interval, what guessing gives, and what the
    tokenizer's round trip alone allows (None: not limited by it)."""

    accuracy: float
    low: float
    high: float
    n: int
    chance: float | None
    ceiling: float | None
    split: str


@dataclass(frozen=True)
class Story:
    """Everything on the page.

    command: how to reproduce it; source: what the data was; curves: stage → {"step": [...], figure: [...]}; stages: stage →
    {"seconds", "peak_memory_bytes"}; tasks: task → score; real: figures on pictures without exact answers.
    """

    title: str
    source: str
    command: str
    versions: Mapping[str, str]
    stages: Mapping[str, Mapping[str, float]]
    tasks: Mapping[str, TaskScore] = field(default_factory=dict)
    real: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    reconstructions: Sequence[Reconstruction] = ()
    generations: Sequence[Generation] = ()
    captions: Sequence[Caption] = ()
    answers: Sequence[Answer] = ()
    edits: Sequence[EditResult] = ()
    infills: Sequence[Infill] = ()
    neighbors: Sequence[NeighborRow] = ()
