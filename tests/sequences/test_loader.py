"""The loader: batches as a function of (seed, step), whatever the split into processes, with the objective applied."""

from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
import torch

from cm3.core.errors import InputError, UsageError
from cm3.sequences import Batch, LoaderConfig, Mixture, ObjectiveConfig, SequenceLoader, one_pass, restore

CONFIG = LoaderConfig(row_length=96, batch_size=4, window=50, objective=ObjectiveConfig(image_first_prob=0.3))


def same(one: Batch, two: Batch) -> bool:
    return all(torch.equal(getattr(one, field.name), getattr(two, field.name)) for field in fields(Batch))


def documents_of(batch: Batch) -> list[list[int]]:
    found = []
    for tokens, ids in zip(batch.tokens, batch.document_ids):
        found += [tokens[ids == number].tolist() for number in range(1, int(ids.max()) + 1)]
    return found


def test_over_fifty_random_stops_no_document_is_lost_or_doubled(corpus, vocab):
    """A run that is killed and resumed at random steps, on changing numbers of processes, sees what an unbroken one sees."""
    config = CONFIG.model_copy(update={"batch_size": 2})
    whole = SequenceLoader(corpus, vocab, config, seed=3)
    rng = np.random.default_rng(0)
    stops = np.unique(rng.integers(1, 140, 200))[:50].tolist()
    assert len(stops) == 50
    seen: Counter[str] = Counter()
    step = 0
    for stop in stops:
        resumed = SequenceLoader(corpus, vocab, config, seed=3)  # a new process that knows only (seed, step)
        for current in range(step, stop):
            assert same(resumed.batch(current), whole.batch(current))
            for row in range(2 * current, 2 * current + 2):
                seen.update(document.id for document in resumed.documents(row))
        step = stop
    rows = range(2 * step)
    assert seen == Counter(document.id for row in rows for document in whole.documents(row))
    assert max(seen.values()) - min(seen.get(document.id, 0) for document in corpus) <= 1  # epochs are whole
    assert not same(SequenceLoader(corpus, vocab, config, seed=4).batch(0), whole.batch(0))


def test_position_counts_what_was_seen(corpus, vocab):
    loader = SequenceLoader(corpus, vocab, CONFIG, seed=0)
    for step, shards in ((0, 1), (3, 1), (7, 2)):
        seen = sum(len(loader.documents(row)) for row in range(step * shards * CONFIG.batch_size))
        assert loader.position(step, shards) == {"documents": seen, "epoch": seen / len(corpus)}


def test_shards_of_a_step_are_the_rows_of_one_large_batch(corpus, vocab):
    small = SequenceLoader(corpus, vocab, CONFIG, seed=0)
    large = SequenceLoader(corpus, vocab, CONFIG.model_copy(update={"batch_size": 12}), seed=0)
    for step in (0, 7):
        shards = [small.batch(step, shard, 3).tokens for shard in range(3)]
        assert torch.equal(torch.cat(shards), large.batch(step).tokens)


def test_every_sequence_restores_to_its_document(corpus, vocab):
    loader = SequenceLoader(corpus, vocab, CONFIG, seed=0)
    originals = {tuple(sorted(document.token_ids.tolist())) for document in corpus}
    masked = 0
    for step in range(10):
        for ids in documents_of(loader.batch(step)):
            restored = restore(np.array(ids), vocab)
            masked += len(restored) < len(ids)
            assert tuple(sorted(restored.tolist())) in originals
    assert masked > 50


def test_one_epoch_shows_every_document_once(corpus, vocab):
    loader = SequenceLoader(corpus, vocab, CONFIG.model_copy(update={"window": 200}), seed=0)
    seen = Counter(document.id for row in range(loader.plan.first_row(1)) for document in loader.documents(row))
    assert seen == Counter(document.id for document in corpus)


def test_documents_longer_than_a_row_are_counted_never_cut(corpus, vocab):
    short = CONFIG.model_copy(update={"row_length": 24})
    too_long = sum(len(document) > 24 for document in corpus)
    with pytest.raises(InputError, match=f"{too_long} documents are longer than row_length=24"):
        SequenceLoader(corpus, vocab, short, seed=0)
    loader = SequenceLoader(corpus, vocab, short.model_copy(update={"overlong": "skip"}), seed=0)
    assert loader.skipped == too_long
    loader.batch(5)
    with pytest.raises(InputError, match="no document of source 0 fits"):
        SequenceLoader(corpus, vocab, short.model_copy(update={"row_length": 2, "overlong": "skip"}), seed=0)


def test_a_mixture_keeps_the_objective_of_each_part(corpus, vocab):
    texts = [document for document in corpus if [span.kind for span in document.spans] == ["text"]]
    pictures = [document for document in corpus if [span.kind for span in document.spans] == ["image"]]
    mixture = Mixture([(texts, 1.0), (pictures, 1.0, ObjectiveConfig(name="causal"))])
    batch = SequenceLoader(mixture, vocab, CONFIG, seed=0).batch(0)
    kinds = [(bool(vocab.is_image(np.array(ids)).any()), bool(vocab.is_mask(np.array(ids)).any())) for ids in documents_of(batch)]
    assert (True, False) in kinds
    assert (False, True) in kinds
    assert (True, True) not in kinds


def test_one_pass_is_every_document_once(corpus, vocab):
    config = CONFIG.model_copy(update={"objective": ObjectiveConfig(name="causal")})
    batches = list(one_pass(corpus, vocab, config))
    assert all(batch.tokens.shape == (4, 96) for batch in batches)
    shown = Counter(tuple(ids) for batch in batches for ids in documents_of(batch))
    assert shown == Counter(tuple(document.token_ids.tolist()) for document in corpus)
    masked = list(one_pass(corpus, vocab, CONFIG, seed=1))
    assert all(same(one, two) for one, two in zip(masked, one_pass(corpus, vocab, CONFIG, seed=1)))
    with pytest.raises(UsageError, match="does not fit"):
        list(one_pass(corpus, vocab, config.model_copy(update={"row_length": 16})))
