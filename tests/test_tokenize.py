"""From documents to token shards: everything accounted, the same bytes again, parts that do not fit refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cm3.core import artefact
from cm3.core.errors import ArtefactError, BudgetError, InputError
from cm3.documents.readers import read_documents
from cm3.pretrain.run import CODEBOOK_FILE
from cm3.sequences.shards import TokenShards
from cm3.tokenize import tokenize, train_document_tokenizer
from cm3.tokens import DocumentTokenizer
from vqgan.config import VQConfig
from vqgan.model import VQModel
from vqgan.tokenizer import VQTokenizer

COUNT = 12


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    lines = []
    for index in range(COUNT):
        Image.new("RGB", (16, 16), (20 * index, 100, 200)).save(folder / f"{index}.png")
        lines.append({"id": f"{index}", "image": f"{index}.png", "text": f"picture {index}"})
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "data.jsonl"


def image_tokenizer(path: Path, codebook_size: int = 8) -> Path:
    torch.manual_seed(0)
    config = VQConfig(image_size=16, downsample_factor=8, codebook_size=codebook_size, codebook_dim=4)
    VQTokenizer(VQModel(config)).save(path)
    return path


def test_shards_hold_every_document(data: Path, tmp_path: Path) -> None:
    pictures = image_tokenizer(tmp_path / "image_tokenizer")
    made = train_document_tokenizer(read_documents(data), pictures, tmp_path / "tokenizer", 300)
    account = tokenize(data, tmp_path / "tokenizer", pictures, tmp_path / "tokens")
    shards = TokenShards(tmp_path / "tokens", made.vocab)
    assert (account["ok"], account["rejected"], len(shards)) == (COUNT, {}, COUNT)
    assert account["tokens"] == sum(len(shards[index]) for index in range(COUNT))
    again = DocumentTokenizer.load(tmp_path / "tokenizer").decode(shards[3].token_ids)
    assert again.text == "picture 3"
    assert again.images[0].codes.shape == (2, 2)
    codebook = load_file(tmp_path / "tokenizer" / CODEBOOK_FILE)["codebook"]
    assert codebook.shape == (8, 4)


def test_the_same_documents_give_the_same_bytes(data: Path, tmp_path: Path) -> None:
    pictures = image_tokenizer(tmp_path / "image_tokenizer")
    train_document_tokenizer(read_documents(data), pictures, tmp_path / "tokenizer", 300)
    for name in ("first", "second"):
        tokenize(data, tmp_path / "tokenizer", pictures, tmp_path / name)
    assert artefact.fingerprint(tmp_path / "first") == artefact.fingerprint(tmp_path / "second")


def test_rejected_records_are_counted_and_have_a_budget(data: Path, tmp_path: Path) -> None:
    pictures = image_tokenizer(tmp_path / "image_tokenizer")
    train_document_tokenizer(read_documents(data), pictures, tmp_path / "tokenizer", 300)
    with data.open("a") as stream:
        stream.write('{"image": "missing.png", "text": "nothing"}\n')
    with pytest.raises(BudgetError, match="missing_image"):
        tokenize(data, tmp_path / "tokenizer", pictures, tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()
    account = tokenize(data, tmp_path / "tokenizer", pictures, tmp_path / "tokens", budget=0.2)
    assert (account["seen"], account["ok"], account["rejected"]) == (COUNT + 1, COUNT, {"missing_image": 1})


def test_parts_that_do_not_belong_together(data: Path, tmp_path: Path) -> None:
    first, other = image_tokenizer(tmp_path / "first"), image_tokenizer(tmp_path / "other", codebook_size=16)
    train_document_tokenizer(read_documents(data), first, tmp_path / "tokenizer", 300)
    with pytest.raises(ArtefactError, match="do not belong together"):
        tokenize(data, tmp_path / "tokenizer", other, tmp_path / "tokens")


def test_no_text_to_train_on(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "pictures" / "a.png")
    with pytest.raises(InputError, match="none of the documents has a text"):
        documents = read_documents(tmp_path / "pictures")
        train_document_tokenizer(documents, image_tokenizer(tmp_path / "image_tokenizer"), tmp_path / "tokenizer")
