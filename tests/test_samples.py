"""Pictures drawn while a model trains: one sheet, the same for the same weights, from the texts of held-out pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cm3.core.errors import ArtefactError
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.pretrain.run import ModelSection, build_model
from cm3.samples import PictureSampler
from cm3.sequences.shards import write_shards
from cm3.tokens import BPETextTokenizer, DocumentTokenizer, Vocab, vocab_for
from vqgan.config import VQConfig
from vqgan.model import VQModel
from vqgan.tokenizer import VQTokenizer

TEXTS = ["all red", "all green", "all blue"]


def image_tokenizer(path: Path, codebook_size: int) -> Path:
    torch.manual_seed(0)
    config = VQConfig(image_size=16, downsample_factor=8, codebook_size=codebook_size, codebook_dim=4)
    VQTokenizer(VQModel(config)).save(path)
    return path


@pytest.fixture
def held_out(tmp_path: Path) -> tuple[Path, Vocab]:
    """Two pairs and a text alone, which is passed over."""
    text = BPETextTokenizer.train(TEXTS, 300)
    tokenizer = DocumentTokenizer(vocab_for(text, 6, (2, 2)), text)
    picture = ImageSegment(codes=np.zeros((2, 2), np.int64))
    documents = [Document(words, (TextSegment(words), picture)[: 1 + (index > 0)]) for index, words in enumerate(TEXTS)]
    write_shards(tokenizer.encode_many(documents), tmp_path / "held_out", tokenizer)
    return tmp_path / "held_out", tokenizer.vocab


def test_a_sheet_of_pictures(held_out: tuple[Path, Vocab], tmp_path: Path) -> None:
    shards, vocab = held_out
    model = build_model(ModelSection(overrides={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}), vocab, 0)
    sampler = PictureSampler(shards, image_tokenizer(tmp_path / "images", 6), vocab)
    sheet = sampler(model)["samples"]
    assert sheet.size == (2 * 16, 16)
    assert sheet.tobytes() == sampler(model)["samples"].tobytes()
    other = build_model(ModelSection(overrides={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}), vocab, 5)
    assert PictureSampler(shards, tmp_path / "images", vocab, seed=1, count=1)(other)["samples"].size == (16, 16)


def test_an_image_tokenizer_of_another_vocabulary_is_refused(held_out: tuple[Path, Vocab], tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"codebook_size=8 .* vocabulary 6 .* do not belong together"):
        PictureSampler(held_out[0], image_tokenizer(tmp_path / "images", 8), held_out[1])
