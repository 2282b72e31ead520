"""Token shards: what is written is read, byte for byte the same, and never under the wrong vocabulary."""

from dataclasses import replace

import numpy as np
import pytest

from cm3.core.artefact import fingerprint
from cm3.core.errors import ArtefactError, InputError
from cm3.sequences import LoaderConfig, SequenceLoader, TokenShards, mask_spans, write_shards
from cm3.tokens import Vocab


def plain(document):
    return replace(document, loss_weights=np.ones_like(document.loss_weights))


def assert_equal(one, two):
    assert (one.id, one.spans) == (two.id, two.spans)
    for name in ("token_ids", "grid_positions", "loss_weights"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
        assert getattr(one, name).dtype == getattr(two, name).dtype


def test_round_trip_of_plain_documents_stores_only_what_is_needed(corpus, vocab, tmp_path):
    documents = [plain(document) for document in corpus]
    assert write_shards(iter(documents), tmp_path / "shards", vocab, {"data": "test"}) == 200
    shards = TokenShards(tmp_path / "shards", vocab)
    assert (len(shards), shards.provenance["data"], shards.vocab) == (200, "test", vocab)
    for one, two in zip(documents, shards):
        assert_equal(one, two)
    assert shards.lengths().tolist() == [len(document) for document in documents]
    assert shards.num_tokens == sum(len(document) for document in documents)
    files = {path.name for path in (tmp_path / "shards").iterdir()}
    assert not files & {"grid.npy", "weights.npy"}
    assert np.load(tmp_path / "shards" / "tokens.npy").dtype == np.uint16


def test_round_trip_of_weights_moved_spans_and_odd_ids(make, vocab, tmp_path):
    documents = [
        mask_spans(make("ti", 1, id="größer/名"), [(2, 4), (9, 12)], vocab),
        make("t", 2, id=""),
        replace(make("ti", 3), loss_weights=np.full(len(make("ti", 3)), 0.1, np.float32)),
    ]
    write_shards(documents, tmp_path / "s", vocab)
    for one, two in zip(documents, TokenShards(tmp_path / "s"), strict=True):
        assert_equal(one, two)


def test_a_large_vocabulary_needs_wider_ids(make, tmp_path):
    wide = Vocab(500, 300, (3, 4), size=70_000)
    write_shards([make("ti")], tmp_path / "s", wide)
    assert np.load(tmp_path / "s" / "tokens.npy").dtype == np.uint32
    assert_equal(TokenShards(tmp_path / "s")[-1], make("ti"))


def test_the_same_documents_give_the_same_bytes(corpus, vocab, tmp_path):
    for name in ("one", "two"):
        write_shards(corpus, tmp_path / name, vocab)
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")


def test_the_loader_reads_shards_as_it_reads_a_list(corpus, vocab, tmp_path):
    write_shards(corpus, tmp_path / "s", vocab)
    config = LoaderConfig(row_length=96, batch_size=4)
    from_disk, from_list = (SequenceLoader(source, vocab, config, 0) for source in (TokenShards(tmp_path / "s"), corpus))
    for step in (0, 11):
        assert (from_disk.batch(step).tokens == from_list.batch(step).tokens).all()


def test_another_vocabulary_is_refused_by_name(corpus, vocab, tmp_path):
    write_shards(corpus[:3], tmp_path / "s", vocab)
    with pytest.raises(ArtefactError, match="codebook_size is 300 there and 301 here"):
        TokenShards(tmp_path / "s", Vocab(500, 301, (3, 4)))


def test_a_flipped_byte_is_found(corpus, vocab, tmp_path):
    write_shards(corpus[:3], tmp_path / "s", vocab)
    path = tmp_path / "s" / "tokens.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"tokens\.npy differs"):
        TokenShards(tmp_path / "s")
    TokenShards(tmp_path / "s", hashes=False)


def test_nothing_is_left_behind_when_writing_fails(make, vocab, tmp_path):
    def failing():
        yield make("t")
        raise InputError("broken")

    with pytest.raises(InputError, match="broken"):
        write_shards(failing(), tmp_path / "s", vocab)
    with pytest.raises(InputError, match="no document"):
        write_shards([], tmp_path / "s", vocab)
    outside = replace(make("t"), token_ids=make("t").token_ids + 10_000)
    with pytest.raises(InputError, match=r"outside 0\.\.820"):
        write_shards([outside], tmp_path / "s", vocab)
    many = replace(make("i" * 30), loss_weights=np.arange(len(make("i" * 30)), dtype=np.float32))
    with pytest.raises(InputError, match="256 different loss weights"):
        write_shards([many], tmp_path / "s", vocab)
    assert list(tmp_path.iterdir()) == []


def test_indices_are_checked(corpus, vocab, tmp_path):
    write_shards(corpus[:3], tmp_path / "s", vocab)
    shards = TokenShards(tmp_path / "s")
    for index in (3, -4):
        with pytest.raises(IndexError):
            shards[index]
