"""The mixture: shares, loss masks, fresh draws that resuming repeats, pictures encoded once."""

import json

import numpy as np
import pytest

from cm3.core.errors import InputError, UsageError
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.sequences.loader import LoaderConfig, SequenceLoader
from sft.mixture import MixtureEntry, TaskSource, encode_pictures, held_out_examples, make_mixture
from sft.tasks import make_task
from sft.train import PLAIN


@pytest.fixture
def data(tmp_path, make_picture):
    lines = []
    for index in range(8):
        make_picture(index).save(tmp_path / f"{index}.png")
        line = {"id": str(index), "image": f"{index}.png", "text": "one " * (index + 1)}
        lines.append(json.dumps(line | {"question": "how many?", "answer": "two"}))
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_pictures_become_their_codes(make_picture, make_codes, tokenizer):
    pictures = [ImageSegment(image=make_picture(seed)) for seed in range(3)]
    documents = [Document("a", (pictures[0], TextSegment("x"), pictures[1])), Document("b", (pictures[2],))]
    first, second = encode_pictures(documents, tokenizer)
    assert [np.array_equal(p.codes, make_codes(s)) for s, p in enumerate([*first.images, *second.images])] == [True] * 3
    assert first.images[0].codes.dtype == np.uint8
    assert first.segments[1] == TextSegment("x")


def test_the_mask_of_an_edit_is_not_encoded(edit, tokenizer, make_codes):
    mask = ImageSegment(codes=make_codes(9))
    masked = Document("m", (*edit.segments, mask), {"images": ["source", "target", "mask"]})
    [document] = encode_pictures([masked], tokenizer)
    assert len(document.images) == 2


def test_masks_are_fresh_every_epoch_and_the_same_again(pair, tokenizer):
    source, again = (TaskSource(make_task("infilling"), [pair] * 4, tokenizer, 7, 1000) for _ in range(2))
    epochs = [tuple(source.document(0, epoch).token_ids.tolist()) for epoch in range(8)]
    assert len(set(epochs)) > 4
    assert epochs == [tuple(again.document(0, epoch).token_ids.tolist()) for epoch in range(8)]
    assert len({tuple(source.document(index, 0).token_ids.tolist()) for index in range(4)}) > 1
    assert source.lengths(3).tolist() == [len(source.document(index, 3)) for index in range(4)]


def test_an_example_never_outgrows_what_epoch_zero_promised(asked, tokenizer):
    long = Document("l", asked.segments, {"questions": [*asked.meta["questions"], {"question": "one " * 50, "answer": "one"}]})
    task = make_task("vqa", {"questions_per_image": 1})
    source = TaskSource(task, [long] * 30, tokenizer, 0, max_length=40)
    first = source.lengths(0)
    assert any((TaskSource(task, [long] * 30, tokenizer, 0, 10**6).lengths(e) > np.maximum(first, 40)).any() for e in range(1, 5))
    assert all((source.lengths(epoch) <= np.maximum(first, 40)).all() for epoch in range(1, 5))


def test_loss_weight_scales_the_response_alone(pair, tokenizer):
    plain, heavy = (TaskSource(make_task("captioning"), [pair], tokenizer, 0, 1000, weight) for weight in (1.0, 3.0))
    assert np.array_equal(heavy.document(0, 0).loss_weights, 3 * plain.document(0, 0).loss_weights)


def test_shares_and_loss_mask_in_batches(data, tokenizer):
    entries = [
        MixtureEntry(task="text_to_image", data=data, weight=2, options={"blank_fraction": 0.0}),
        MixtureEntry(task="vqa", data=data, weight=1),
    ]
    mixture = make_mixture(entries, tokenizer, 0, 64)
    loader = SequenceLoader(mixture, tokenizer.vocab, LoaderConfig(row_length=64, batch_size=4, window=96, objective=PLAIN), 0)
    kinds = {"image": 0, "answer": 0}
    for step in range(40):
        batch = loader.batch(step)
        targets = batch.targets[batch.loss_weights > 0].numpy()
        ends = int((targets == tokenizer.vocab.eos_id).sum())
        pictures = int(tokenizer.vocab.is_image(targets).sum()) // 16
        kinds["image"] += pictures
        kinds["answer"] += ends - pictures
    assert kinds["image"] / kinds["answer"] == pytest.approx(2, rel=0.1)


def test_one_data_set_is_encoded_once(data, tokenizer):
    entries = [MixtureEntry(task=name, data=data) for name in ("text_to_image", "captioning", "infilling")]
    mixture = make_mixture(entries, tokenizer, 0, 100)
    first, second, third = (part.source.documents for part in mixture.parts)
    assert first is second is third


def test_held_out_examples_are_the_same_each_time(data, tokenizer):
    entries = [MixtureEntry(task="infilling", data=data, held_out=data), MixtureEntry(task="vqa", data=data)]
    first, second = (held_out_examples(entries, tokenizer, 0, 5) for _ in range(2))
    assert len(first) == 5
    assert all(np.array_equal(a.token_ids, b.token_ids) for a, b in zip(first, second))


def test_bad_mixtures(data, tokenizer, tmp_path):
    with pytest.raises(UsageError, match="empty"):
        make_mixture([], tokenizer, 0, 64)
    with pytest.raises(UsageError, match="vqa"):
        make_mixture([MixtureEntry(task="vqq", data=data)], tokenizer, 0, 64)
    with pytest.raises(InputError, match="none"):
        make_mixture([MixtureEntry(task="vqa", data=tmp_path / "none.jsonl")], tokenizer, 0, 64)
