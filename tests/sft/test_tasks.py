"""Every task: its layout, what the loss counts, and that inference asks exactly what training saw."""

import numpy as np
import pytest

from cm3.core.errors import ArtefactError, InputError, UsageError
from cm3.decode.prompts import Prompt
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.sequences.masking import restore
from cm3.tokens.tokenized import assemble
from cm3.tokens.turns import encode_prompt
from cm3.tokens.vocab import Vocab
from sft.tasks import TASKS, TASKS_FILE, load_tasks, make_task, tasks_json
from sft.tasks.infilling import mask_image, runs
from sft.tasks.task import Task, blank_text, encode_example


def example(name, document, tokenizer, seed=0, **options):
    return encode_example(make_task(name, options), document, tokenizer, np.random.default_rng(seed))


def trained(document) -> np.ndarray:
    return document.token_ids[document.loss_weights > 0]


def image_ids(tokenizer, codes) -> np.ndarray:
    return tokenizer.vocab.image_ids(codes.reshape(-1))


@pytest.mark.parametrize("name", TASKS.names())
def test_every_task_is_one(name):
    task = make_task(name)
    assert isinstance(task, Task)
    assert task.data_format in ("pairs", "vqa", "edits")


def test_text_to_image_is_the_pretraining_document(pair, tokenizer):
    made = example("text_to_image", pair, tokenizer, blank_fraction=0.0)
    plain = tokenizer.encode(pair)
    assert np.array_equal(made.token_ids, plain.token_ids)
    assert np.array_equal(made.grid_positions, plain.grid_positions)
    assert np.array_equal(trained(made), [*image_ids(tokenizer, pair.images[0].codes), tokenizer.vocab.eos_id])


def test_a_blanked_caption_is_one_mask_token(pair, tokenizer):
    made = example("text_to_image", pair, tokenizer, blank_fraction=1.0)
    vocab = tokenizer.vocab
    expected = [vocab.bos_id, vocab.mask_id(0), vocab.break_id, *image_ids(tokenizer, pair.images[0].codes), vocab.eos_id]
    assert made.token_ids.tolist() == expected
    assert made.grid_positions.tolist() == [0, 0, 0, *range(1, 17), 0]
    assert [(span.kind, span.start, span.stop) for span in made.spans] == [("text", 1, 2), ("image", 3, 19)]
    assert np.array_equal(trained(made), expected[3:])


def test_captioning_learns_the_caption_and_to_stop(pair, tokenizer):
    made = example("captioning", pair, tokenizer)
    text = tokenizer.text
    expected = [*image_ids(tokenizer, pair.images[0].codes), tokenizer.vocab.break_id, *text.encode("describe")]
    assert made.token_ids[1:-1].tolist()[: len(expected)] == expected
    assert trained(made).tolist() == [*text.encode(pair.text), tokenizer.vocab.eos_id]


def test_captions_in_meta_are_drawn(pair, tokenizer):
    several = Document("x", pair.segments, {"captions": ["one", "two", "three"]})
    answers = {tokenizer.text.decode(trained(example("captioning", several, tokenizer, seed))[:-1]) for seed in range(30)}
    assert answers == {"one", "two", "three"}


def test_vqa_asks_several_questions_about_one_picture(asked, tokenizer):
    made = example("vqa", asked, tokenizer, questions_per_image=3)
    assert [span.kind for span in made.spans] == ["text", "image"] + ["text"] * 5
    said = [span for span in made.spans if span.kind == "text"]
    texts = [tokenizer.text.decode(made.token_ids[span.start : span.stop]) for span in said]
    for question, answer in zip(texts[::2], texts[1::2]):
        assert question == f"how many {answer}?"
    assert len(set(texts)) == 6
    weights = [made.loss_weights[span.start : span.stop + 1] for span in made.spans]  # with the closing <break> or <eos>
    assert [set(part.tolist()) for part in weights] == [{0.0}, {0.0}, {1.0}] + [{0.0}, {1.0}] * 2


def test_vqa_explains_before_it_answers(asked, tokenizer):
    item = {"question": "how many?", "explanation": "one two", "answer": "two"}
    made = example("vqa", Document("x", asked.segments, {"questions": [item]}), tokenizer)
    said = tokenizer.text.decode(trained(made)[:-1])
    assert said == "one two → two"
    task = make_task("vqa")
    assert [task.reply(text) for text in (said, "two", "a → b → c", "")] == ["two", "two", "c", ""]
    assert make_task("captioning").reply("a → b") == "a → b"


def test_vqa_draws_other_questions_in_other_epochs(asked, tokenizer):
    firsts = {tokenizer.text.decode(trained(example("vqa", asked, tokenizer, s, questions_per_image=1))[:-1]) for s in range(40)}
    assert len(firsts) == 4


def test_editing_learns_the_picture_after(edit, tokenizer):
    made = example("editing", edit, tokenizer, blank_fraction=0.0)
    assert [span.kind for span in made.spans] == ["text", "image", "image"]
    assert np.array_equal(trained(made), [*image_ids(tokenizer, edit.images[1].codes), tokenizer.vocab.eos_id])
    blanked = example("editing", edit, tokenizer, blank_fraction=1.0)
    assert blanked.token_ids[blanked.spans[0].start : blanked.spans[0].stop].tolist() == [tokenizer.vocab.mask_id(0)]
    last = blanked.spans[2]
    assert np.array_equal(blanked.token_ids[last.start : last.stop], image_ids(tokenizer, edit.images[1].codes))
    assert np.array_equal(blanked.grid_positions[last.start : last.stop], np.arange(1, 17))


@pytest.mark.parametrize("shape", ["rows", "box"])
def test_infilling_counts_only_what_fills_the_masks(pair, tokenizer, shape):
    vocab = tokenizer.vocab
    whole = tokenizer.encode(pair)
    for seed in range(20):
        made = example("infilling", pair, tokenizer, seed, shapes=[shape])
        assert np.array_equal(restore(made.token_ids, vocab), whole.token_ids)
        counted = made.loss_weights > 0
        masked = vocab.is_image(made.token_ids) & counted
        assert 16 / 6 - 2 <= masked.sum() <= 8 + 2
        opening = int(np.flatnonzero(vocab.is_mask(made.token_ids))[vocab.is_mask(made.token_ids).sum() // 2])
        assert not counted[:opening].any()
        others = made.token_ids[counted & ~masked]
        assert set(others.tolist()) == {vocab.eoss_id, vocab.eos_id}


def test_infilling_masks_are_fresh(pair, tokenizer):
    masks = {tuple(example("infilling", pair, tokenizer, seed).token_ids.tolist()) for seed in range(12)}
    assert len(masks) > 6


def test_runs_of_a_mask():
    mask = np.zeros((3, 4), bool)
    mask[0, 3] = mask[1, 0] = mask[2, 1:3] = True
    assert runs(mask) == [(3, 5), (9, 11)]
    assert runs(np.ones((2, 2), bool)) == [(0, 4)]
    assert runs(np.zeros((2, 2), bool)) == []


def test_boxes_never_need_more_sentinels_than_there_are(tokenizer):
    from dataclasses import replace

    vocab = replace(tokenizer.vocab, grid_shape=(32, 32), num_masks=2, text_start=-1, image_start=-1, size=-1)
    task = make_task("infilling", {"shapes": ["box"]})
    rng = np.random.default_rng(0)
    assert max(len(runs(task.draw_mask(vocab, rng))) for _ in range(200)) <= 2


def test_masking_needs_a_picture(tokenizer):
    text_only = tokenizer.encode(Document("t", (TextSegment("one"),)))
    with pytest.raises(InputError, match="no picture"):
        mask_image(text_only, np.ones((4, 4), bool), tokenizer.vocab)


@pytest.mark.parametrize("name", ["text_to_image", "captioning", "vqa", "editing"])
def test_the_prompt_of_inference_is_the_prefix_of_training(name, pair, asked, edit, tokenizer):
    document = {"vqa": asked, "editing": edit}.get(name, pair)
    task = make_task(name, {} if name in ("captioning", "vqa") else {"blank_fraction": 0.0})
    rng = np.random.default_rng(3)
    turns = task.turns(document, rng)
    image = ImageSegment(codes=document.images[0].codes)
    asked_now = {
        "text_to_image": lambda: task.prompt(pair.text),
        "captioning": lambda: task.prompt(image),
        "vqa": lambda: task.prompt(image, turns[0].segments[0].text),
        "editing": lambda: task.prompt(image, edit.text),
    }[name]()
    prompt = encode_prompt(asked_now, tokenizer)
    made = encode_example(task, document, tokenizer, np.random.default_rng(3))
    first = int(np.flatnonzero(made.loss_weights)[0])
    assert np.array_equal(made.token_ids[:first], prompt.token_ids)
    assert np.array_equal(made.grid_positions[:first], prompt.grid_positions)


@pytest.mark.parametrize(
    ("name", "message"),
    [("text_to_image", "no caption"), ("captioning", "no caption"), ("vqa", "no questions"), ("editing", "no instruction")],
)
def test_a_missing_part_is_named(name, message, tokenizer):
    bare = Document("bare", (ImageSegment(codes=np.zeros((4, 4), int)),))
    with pytest.raises(InputError, match=message):
        example(name, bare, tokenizer)


def test_unknown_tasks_and_options_are_refused():
    with pytest.raises(UsageError, match="captioning"):
        make_task("captionning")
    with pytest.raises(UsageError, match="template"):
        make_task("vqa", {"templat": "x"})
    with pytest.raises(UsageError, match="smallest"):
        make_task("infilling", {"smallest": 0.9, "largest": 0.2})


def test_task_options_travel_with_a_model(tmp_path):
    tasks = {"vqa": make_task("vqa", {"template": "Question: {question}"})}
    import json

    (tmp_path / TASKS_FILE).write_text(json.dumps(tasks_json(tasks)))
    loaded = load_tasks(tmp_path)
    assert loaded["vqa"] == tasks["vqa"]
    assert loaded["captioning"] == make_task("captioning")
    (tmp_path / TASKS_FILE).write_text('{"vqa": {"gone": 1}}')
    with pytest.raises(ArtefactError, match="gone"):
        load_tasks(tmp_path)


def test_a_blanked_prompt_between_marks_is_the_stream_that_guidance_contrasts_with():
    vocab = Vocab(
        text_size=300, codebook_size=16, grid_shape=(2, 3), num_masks=8, bos_id=0, pad_id=1, eos_id=2, image_start=4,
        image_close_id=20, image_open_id=21, mask_start=22, break_id=30, eoss_id=31, text_start=40,
    )  # fmt: skip
    text, picture = ("text", np.array([41, 42])), ("image", np.arange(4, 10))
    for segments, weights in (([text, picture], (0, 1)), ([picture, text, text], (0, 0, 1)), ([text, text, picture], (0, 0, 1))):
        example = assemble(segments, vocab, "d", weights)
        blank = blank_text(example, vocab)
        trained = example.spans[-1]
        ids, grid = example.token_ids[: trained.start], example.grid_positions[: trained.start]
        prompt = Prompt(vocab, ids, grid, example.spans[:-1])
        stream = prompt.without("text").token_ids.tolist()
        assert blank.token_ids.tolist() == stream + example.token_ids[trained.start :].tolist()
        assert len(blank) == len(blank.grid_positions) == len(blank.loss_weights)
        kept = [4] * any(kind == "image" for kind, _ in segments) + [41] * (segments[-1] is text)
        assert [blank.token_ids[span.start] for span in blank.spans] == kept


def test_only_what_puts_a_mask_for_a_text_teaches_guidance():
    assert make_task("text_to_image").masks_texts
    assert make_task("editing").masks_texts
    assert not make_task("text_to_image", {"blank_fraction": 0.0}).masks_texts
    assert not make_task("infilling", {"blank_fraction": 0.5}).masks_texts  # captions are left out, not masked
    assert not make_task("captioning").masks_texts
