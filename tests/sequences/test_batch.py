"""Packed rows: targets stay inside a document, and nothing is learned across a border or in padding."""

import numpy as np
import pytest
import torch

from cm3.core.errors import UsageError
from cm3.sequences import collate


def test_every_field_by_document(vocab, make):
    rows = [[make("ti", 1), make("t", 2)], [], [make("i", 3)]]
    batch = collate(rows, 40, vocab.pad_id)
    assert batch.tokens.shape == (3, 40)
    assert {field.dtype for field in (batch.tokens, batch.targets, batch.document_ids, batch.positions)} == {torch.int64}
    assert batch.loss_weights.dtype == torch.float32
    for index, row in enumerate(rows):
        start = 0
        for number, document in enumerate(row, start=1):
            stop = start + len(document)
            here = slice(start, stop)
            assert batch.tokens[index, here].tolist() == document.token_ids.tolist()
            assert batch.targets[index, start : stop - 1].tolist() == document.token_ids[1:].tolist()
            assert batch.loss_weights[index, here].tolist() == [*document.loss_weights[1:].tolist(), 0.0]
            assert batch.positions[index, here].tolist() == list(range(len(document)))
            assert batch.grid_positions[index, here].tolist() == document.grid_positions.tolist()
            assert (batch.document_ids[index, here] == number).all()
            start = stop
        for padded in (batch.document_ids, batch.loss_weights, batch.positions, batch.grid_positions):
            assert (padded[index, start:] == 0).all()
        assert (batch.tokens[index, start:] == vocab.pad_id).all()
        assert (batch.targets[index, start:] == vocab.pad_id).all()
    assert batch.num_tokens == sum(len(document) for row in rows for document in row)


def test_weighted_targets_are_exactly_all_tokens_but_the_first(vocab, make):
    documents = [make("ti", n) for n in range(3)]
    batch = collate([documents], 128, vocab.pad_id)
    learned = batch.targets[batch.loss_weights > 0]
    assert learned.tolist() == np.concatenate([document.token_ids[1:] for document in documents]).tolist()


def test_without_padding_the_same_documents_stand_in_one_row(vocab, make):
    """The first documents of two rows bear one number; beside each other they must not."""
    batch = collate([[make("t", 2)], [make("ti", 1), make("t", 3)], []], 40, vocab.pad_id)
    real = batch.document_ids > 0
    dense = batch.without_padding(8)
    assert dense.tokens.shape == (1, -(-batch.num_tokens // 8) * 8)
    assert dense.num_tokens == batch.num_tokens
    for name in ("tokens", "targets", "loss_weights", "positions", "grid_positions"):
        found, padding = getattr(dense, name)[0].tensor_split([batch.num_tokens])
        assert torch.equal(found, getattr(batch, name)[real])
        assert (padding == (vocab.pad_id if name in ("tokens", "targets") else 0)).all()
    ids = dense.document_ids[0, : batch.num_tokens]
    starts = (batch.positions[real] == 0).nonzero()[:, 0]
    assert torch.equal((ids.diff(prepend=ids.new_zeros(1)) != 0).nonzero()[:, 0], starts)
    assert collate([[]], 40, vocab.pad_id).without_padding(8).tokens.shape == (1, 8)
    full = collate([[make("t", 2)]], len(make("t", 2)), vocab.pad_id)
    assert torch.equal(full.without_padding(8).tokens, full.tokens)  # nothing to fill up with


def test_moving_a_batch_keeps_its_values(vocab, make):
    batch = collate([[make("t")]], 16, vocab.pad_id)
    assert torch.equal(batch.to("cpu").tokens, batch.tokens)


def test_a_row_that_overflows_is_refused(vocab, make):
    with pytest.raises(UsageError, match="the row only 16"):
        collate([[make("i"), make("i")]], 16, vocab.pad_id)
