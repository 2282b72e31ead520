"""Accuracies of a model on held-out documents, task by task, through the pipeline that users call.

    documents → the task's own turns → prompts → batched decoding → scorer → accuracy with its 95 % interval

Beside each accuracy stand two references, judged by the same scorer: chance (the expected answers of other documents, and
for texts the most frequent answer to such a question, whichever is better), and for pictures the ceiling (the expected
picture after the image tokenizer's round trip).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from cm3.core.errors import InputError, UsageError
from cm3.core.runfile import RunConfig
from cm3.core.seeding import numpy_generator
from cm3.decode import Generation, ImageAnswer, InfillAnswer, Prompt, Request, TextAnswer, codes_of, continuation, fill, infilling
from cm3.decode.grammar import Answer
from cm3.decode.options import EXACT, DecodingOptions
from cm3.documents.document import Document, TextSegment
from cm3.gaps import picture_codes
from cm3.metrics.intervals import wilson_interval
from cm3.pipeline import TEXT_LIMIT, CM3Pipeline
from cm3.tokens.tokenized import TokenizedDocument
from cm3.tokens.turns import encode_prompt, encode_turns
from sft.mixture import encode_pictures
from sft.scoring import Scorer, majority_answers
from sft.tasks.task import Task


class EvaluationConfig(RunConfig):
    """How to measure.

    seed: of the questions, masks and drawing; split: what the documents are, for the record; decoding: how answers are
    drawn (default: the most likely one); mask_share: the share of the codes that infilling takes out.
    """

    seed: int = Field(default=0, ge=0)
    split: str = "test"
    decoding: DecodingOptions = EXACT
    mask_share: float = Field(default=1 / 3, gt=0, le=1)


@dataclass(frozen=True, eq=False)
class Case:
    """One question put to the model: what was asked in words, what was expected, what was given (with its explanation, if the
    model gives one), and the score in [0, 1]."""

    document: Document
    asked: str
    expected: str | Image.Image
    given: str | Image.Image
    score: float


@dataclass(frozen=True)
class TaskResult:
    """accuracy: mean score over n cases, with its Wilson 95 % interval [low, high]; chance and ceiling: see the module text
    (None where there is none)."""

    task: str
    accuracy: float
    low: float
    high: float
    n: int
    chance: float | None
    ceiling: float | None
    split: str
    cases: tuple[Case, ...]

    def to_json(self) -> dict[str, Any]:
        """The figures without the cases."""
        names = ("accuracy", "low", "high", "n", "chance", "ceiling", "split")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, eq=False)
class _Example:
    """A document as a request: `expected` is the text, or the codes (h, w); `masked` the sequence whose gaps are to fill."""

    document: Document
    asked: str
    expected: str | np.ndarray
    request: Request
    masked: TokenizedDocument | None = None

    @property
    def num_gaps(self) -> int:
        """How many gaps there are to fill."""
        return len(self.request.answer.gaps) if isinstance(self.request.answer, InfillAnswer) else 0


def evaluate(
    pipe: CM3Pipeline, task: str, documents: Sequence[Document], scorer: Scorer, config: EvaluationConfig | None = None
) -> TaskResult:
    """Put every document (in the task's data format) to the model as one case and score the answers.

    Raises `InputError` for no documents or a document that does not fit the task, `UsageError` for an unknown task.
    """
    config = config or EvaluationConfig()
    if not documents:
        raise InputError(f"there are no documents to evaluate {task} on; check the data")
    if task not in pipe.tasks:
        raise UsageError(f"unknown task {task!r}; this model knows {', '.join(pipe.tasks)}")
    examples = _examples(pipe, task, documents, config)
    generations = pipe.decode([example.request for example in examples], config.decoding)
    if pipe.tasks[task].answer == "text":
        return _text_result(pipe, task, examples, generations, scorer, config)
    return _image_result(pipe, task, examples, generations, scorer, config)


def evaluate_round_trip(pipe: CM3Pipeline, documents: Sequence[Document], scorer: Scorer, split: str = "test") -> TaskResult:
    """The image tokenizer alone: pairs encoded and decoded, scored like drawings of their captions (task "tokenizer")."""
    texts = [document.text for document in documents]
    codes = [document.images[0].codes for document in encode_pictures(documents, pipe.tokenizer)]
    pictures = pipe.decode_codes([grid for grid in codes if grid is not None])
    scores = scorer.score_images("text_to_image", documents, texts, pictures)
    originals = [document.images[0].load() for document in documents]
    cases = [Case(*row) for row in zip(documents, texts, originals, pictures, scores, strict=True)]
    return _result("tokenizer", cases, None, None, split)


def _examples(pipe: CM3Pipeline, name: str, documents: Sequence[Document], config: EvaluationConfig) -> list[_Example]:
    task = pipe.tasks[name]
    if task.answer == "masked":
        share = {"smallest": config.mask_share, "largest": config.mask_share, "blank_fraction": 0.0}
        task = task.model_copy(update=share)
    # the caption that stands in the document is asked and judged, not one drawn from several
    plain = [replace(d, meta={key: value for key, value in d.meta.items() if key != "captions"}) for d in documents]
    coded = encode_pictures(plain, pipe.tokenizer)
    return [_example(pipe, task, document, numpy_generator(config.seed, name, document.id), config.seed) for document in coded]


def _example(pipe: CM3Pipeline, task: Task, document: Document, rng: np.random.Generator, seed: int) -> _Example:
    turns = task.turns(document, rng)
    first = next(index for index, turn in enumerate(turns) if turn.train)
    response = turns[first].segments[0]
    asked = next((s.text for turn in turns[:first][::-1] for s in turn.segments[::-1] if isinstance(s, TextSegment)), "")
    masked: TokenizedDocument | None = None
    prompt: Prompt
    answer: Answer
    if task.answer == "masked":
        masked = task.rewrite(encode_turns(turns, pipe.tokenizer, document.id), pipe.vocab, rng)
        prompt, answer = infilling(masked, pipe.vocab)
    else:
        prompt = continuation(encode_prompt(turns, pipe.tokenizer, document.id), pipe.vocab)
        answer = TextAnswer(TEXT_LIMIT) if task.answer == "text" else ImageAnswer()
    expected = response.text if isinstance(response, TextSegment) else np.asarray(response.codes)
    asked = asked if task.answer == "text" else document.text
    return _Example(document, asked, expected, Request(prompt, answer, seed), masked)


def _text_result(
    pipe: CM3Pipeline,
    task: str,
    examples: Sequence[_Example],
    generations: Sequence[Generation],
    scorer: Scorer,
    config: EvaluationConfig,
) -> TaskResult:
    documents, reply = [example.document for example in examples], pipe.tasks[task].reply
    expected = [reply(str(example.expected)) for example in examples]
    given = [pipe.text_of(generation) for generation in generations]
    scores = scorer.score_texts(task, documents, expected, [reply(text) for text in given])
    frequent = majority_answers([example.asked for example in examples], expected)
    blind = [scorer.score_texts(task, documents, expected, guesses) for guesses in (_others(expected), frequent)]
    asked = [example.asked for example in examples]
    cases = [Case(*row) for row in zip(documents, asked, expected, given, scores, strict=True)]
    return _result(task, cases, max(map(_mean, blind)) if len(cases) > 1 else None, None, config.split)


def _image_result(
    pipe: CM3Pipeline,
    task: str,
    examples: Sequence[_Example],
    generations: Sequence[Generation],
    scorer: Scorer,
    config: EvaluationConfig,
) -> TaskResult:
    documents, asked = [example.document for example in examples], [example.asked for example in examples]
    expected = [np.asarray(example.expected) for example in examples]
    given = [_codes(example, generation, pipe) for example, generation in zip(examples, generations, strict=True)]
    guesses = [_guess(*row, pipe) for row in zip(examples, _others(expected), strict=True)]
    pictures, round_trips, blind = (pipe.decode_codes(codes) for codes in (given, expected, guesses))
    scores, ceiling, chance = (scorer.score_images(task, documents, asked, made) for made in (pictures, round_trips, blind))
    cases = [Case(*row) for row in zip(documents, asked, round_trips, pictures, scores, strict=True)]
    return _result(task, cases, _mean(chance) if len(cases) > 1 else None, _mean(ceiling), config.split)


def _codes(example: _Example, generation: Generation, pipe: CM3Pipeline) -> np.ndarray:
    """The codes (h, w) of the picture that was given: drawn whole, or the document's own with its gaps filled."""
    if example.masked is None:
        return codes_of(generation, pipe.vocab)
    return picture_codes(fill(example.masked, generation.token_ids, pipe.vocab), pipe.vocab)


def _guess(example: _Example, other: np.ndarray, pipe: CM3Pipeline) -> np.ndarray:
    """What somebody would give who has not looked: the picture of another document, where something is to be drawn."""
    if example.masked is None:
        return other
    gaps = example.masked.spans[len(example.masked.spans) - example.num_gaps :]
    places = np.concatenate([example.masked.grid_positions[gap.start : gap.stop] for gap in gaps]) - 1
    codes = np.array(example.expected).reshape(-1)
    codes[places] = other.reshape(-1)[places]
    return codes.reshape(pipe.vocab.grid_shape)


def _others(items: Sequence[Any]) -> list[Any]:
    """For each item the one after it, for the last the first."""
    return [*items[1:], items[0]]


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def _result(task: str, cases: Sequence[Case], chance: float | None, ceiling: float | None, split: str) -> TaskResult:
    total = sum(case.score for case in cases)
    low, high = wilson_interval(round(total), len(cases))
    return TaskResult(task, total / len(cases), low, high, len(cases), chance, ceiling, split, tuple(cases))
