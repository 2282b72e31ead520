"""Exact scores on the embedded world: the truth is right, another scene's truth is not."""

import pytest

from cm3.core.errors import InputError, UsageError
from cm3.documents.document import Document
from cm3.scenes.dataset import edit_document, pair_document, vqa_document
from cm3.scenes.world import WorldConfig
from sft.scoring import AnswerScorer, SceneScorer, majority_answers

WORLD = WorldConfig()


def made(make, count=12):
    return [make(WORLD, "test", 0, index) for index in range(count)]


@pytest.mark.parametrize("task", ["text_to_image", "infilling"])
def test_pictures_of_captions(task):
    documents = made(pair_document)
    texts = [document.text for document in documents]
    pictures = [document.images[0].load() for document in documents]
    scorer = SceneScorer(WORLD)
    assert scorer.score_images(task, documents, texts, pictures) == [1.0] * 12
    assert sum(scorer.score_images(task, documents, texts, pictures[1:] + pictures[:1])) == 0


def test_captions():
    documents = made(pair_document)
    texts = [document.text for document in documents]
    scorer = SceneScorer(WORLD)
    assert scorer.score_texts("captioning", documents, texts, texts) == [1.0] * 12
    wrong = scorer.score_texts("captioning", documents, texts, texts[1:] + texts[:1])
    assert 0 < sum(wrong) / 12 < 0.7  # attributes agree by chance
    assert scorer.score_texts("captioning", documents, texts, ["�"] * 12) == [0.0] * 12


def test_answers():
    documents = made(vqa_document)
    expected = [document.meta["questions"][0]["answer"] for document in documents]
    assert SceneScorer(WORLD).score_texts("vqa", documents, expected, [f"{text.upper()}." for text in expected]) == [1.0] * 12
    assert SceneScorer(WORLD).score_texts("vqa", documents, ["one"], ["1"]) == [1.0]
    assert AnswerScorer().score_texts("vqa", documents, ["The cat"], ["a cat!"]) == [1.0]


def test_edits():
    documents = made(edit_document)
    parts = [dict(zip(document.meta["images"], document.images)) for document in documents]
    after, before = ([part[name].load() for part in parts] for name in ("target", "source"))
    words = [document.meta["instruction"] for document in documents]
    assert SceneScorer(WORLD).score_images("editing", documents, words, after) == [1.0] * 12
    assert SceneScorer(WORLD).score_images("editing", documents, words, before) == [0.0] * 12


def test_what_cannot_be_scored():
    bare = Document("bare", ())
    with pytest.raises(InputError, match="embedded world"):
        SceneScorer(WORLD).score_texts("captioning", [bare], ["x"], ["x"])
    with pytest.raises(UsageError, match="embedded"):
        AnswerScorer().score_images("editing", [bare], ["x"], [])


def test_majority_answers_go_by_the_kind_of_question():
    questions = ["how many a?", "how many b?", "how many c?", "what color is it?"]
    assert majority_answers(questions, ["two", "one", "two", "red"]) == ["two", "two", "two", "red"]
