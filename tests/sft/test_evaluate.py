"""Evaluation: an oracle reaches the ceiling, somebody else's answers only chance, and a real model runs through all of it."""

import numpy as np
import pytest
from PIL import Image

import sft.evaluate
from cm3.core.errors import InputError, UsageError
from cm3.decode import Generation
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.metrics.intervals import wilson_interval
from cm3.model.presets import create_model, preset
from cm3.pipeline import CM3Pipeline
from sft.evaluate import EvaluationConfig, evaluate, evaluate_round_trip


class PixelScorer:
    """Right means the same pixels as the document's last picture, or the same words."""

    def score_texts(self, task, documents, expected, given):
        return [float(text == answer) for text, answer in zip(given, expected)]

    def score_images(self, task, documents, expected, given):
        return [float(picture.tobytes() == document.meta["target"]) for picture, document in zip(given, documents)]


@pytest.fixture(scope="module")
def pipe(tokenizer):
    vocab = tokenizer.vocab
    config = preset(
        "tiny", vocab_size=vocab.size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=256,
        grid_embedding=True, grid_shape=vocab.grid_shape, image_start=vocab.image_start, image_stop=vocab.image_stop,
    )  # fmt: skip
    return CM3Pipeline(create_model(config, 0), tokenizer)


@pytest.fixture
def documents(make_picture):
    def make(task):
        made = []
        for seed in range(6):
            picture, other = make_picture(seed), make_picture(seed + 100)
            meta = {"target": (other if task == "editing" else picture).tobytes()}
            segments = (TextSegment(f"{'one ' * seed}two"), ImageSegment(image=picture))
            if task == "vqa":
                meta["questions"] = [{"question": "how many?", "answer": "two" if seed < 4 else "one"}]
            if task == "editing":
                segments = (ImageSegment(image=picture), TextSegment("make it"), ImageSegment(image=other))
            made.append(Document(str(seed), segments, meta))
        return made

    return make


TASKS = ["text_to_image", "captioning", "vqa", "editing", "infilling"]


def answering(pipe, monkeypatch, choose):
    """Let the engine give, for example i, the expected answer of example `choose(i)`."""
    made = sft.evaluate._examples
    kept = []
    monkeypatch.setattr(sft.evaluate, "_examples", lambda *arguments: kept.extend(made(*arguments)) or list(kept))

    def ids(example):
        vocab = pipe.vocab
        if example.masked is not None:
            return example.masked.token_ids[len(example.request.prompt.token_ids) : -2]
        if isinstance(example.expected, str):
            return np.array([*pipe.tokenizer.text.encode(example.expected), vocab.eos_id])
        return vocab.image_ids(example.expected.reshape(-1).astype(np.int64))

    def generate(requests, *_, **__):
        return [Generation(ids(kept[choose(index)]), "stop") for index in range(len(requests))]

    monkeypatch.setattr(pipe.engine, "generate", generate)


@pytest.mark.parametrize("task", TASKS)
def test_an_oracle_is_always_right(pipe, documents, monkeypatch, task):
    answering(pipe, monkeypatch, lambda index: index)
    result = evaluate(pipe, task, documents(task), PixelScorer(), EvaluationConfig(split="held out"))
    assert (result.accuracy, result.n, result.split) == (1.0, 6, "held out")
    assert (result.low, result.high) == wilson_interval(6, 6)
    assert result.ceiling == (None if task in ("captioning", "vqa") else 1.0)
    assert result.chance == {"vqa": pytest.approx(4 / 6), "captioning": pytest.approx(1 / 6)}.get(task, 0.0)
    assert set(result.to_json()) == {"accuracy", "low", "high", "n", "chance", "ceiling", "split"}


@pytest.mark.parametrize("task", ["text_to_image", "captioning", "editing"])
def test_the_answers_of_others_are_wrong(pipe, documents, monkeypatch, task):
    answering(pipe, monkeypatch, lambda index: (index + 1) % 6)
    assert evaluate(pipe, task, documents(task), PixelScorer()).accuracy == 0.0


def test_half_right(pipe, documents, monkeypatch):
    answering(pipe, monkeypatch, lambda index: index if index < 3 else (index + 1) % 6)
    result = evaluate(pipe, "text_to_image", documents("text_to_image"), PixelScorer())
    assert result.accuracy == 0.5
    assert [case.score for case in result.cases] == [1, 1, 1, 0, 0, 0]
    assert result.low < 0.5 < result.high


@pytest.mark.parametrize("task", TASKS)
def test_a_real_model_gets_through_and_does_the_same_again(pipe, documents, task):
    first, second = (evaluate(pipe, task, documents(task), PixelScorer()) for _ in range(2))
    given = [(a.given, b.given) for a, b in zip(first.cases, second.cases)]
    if task in ("captioning", "vqa"):
        assert all(isinstance(a, str) and a == b for a, b in given)
    else:
        assert all(isinstance(a, Image.Image) and a.tobytes() == b.tobytes() for a, b in given)


def test_infilling_takes_a_third_and_leaves_the_rest(pipe, documents):
    made = documents("infilling")
    for example in sft.evaluate._examples(pipe, "infilling", made, EvaluationConfig()):
        places = example.request.answer.max_tokens(pipe.vocab) - 2 * (example.num_gaps - 1)
        assert places in range(4, 8)
    for case, document in zip(evaluate(pipe, "infilling", made, PixelScorer()).cases, made):
        same = np.asarray(case.given) == np.asarray(document.images[0].image)
        assert same.mean() > 0.5


def test_round_trip(pipe, documents):
    result = evaluate_round_trip(pipe, documents("text_to_image"), PixelScorer())
    assert (result.task, result.accuracy, result.ceiling) == ("tokenizer", 1.0, None)


def test_mistakes(pipe, documents):
    with pytest.raises(InputError, match="no documents"):
        evaluate(pipe, "vqa", [], PixelScorer())
    with pytest.raises(UsageError, match="captioning"):
        evaluate(pipe, "drawing", documents("vqa"), PixelScorer())
    with pytest.raises(InputError, match="no questions"):
        evaluate(pipe, "vqa", documents("captioning"), PixelScorer())
