"""A converted Chameleon draws, reads, trains and tunes; the command finds formats out and says what is wrong."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cm3 import cli
from cm3.core import artefact
from cm3.core.errors import InputError, StorageError, UsageError
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.model_conversion import convert, detect, export
from cm3.model_folder import open_model_folder
from cm3.pipeline import CM3Pipeline

PICTURE = Image.fromarray(np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3))


@pytest.fixture(scope="module")
def folder(transformers_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "ours"
    convert(transformers_folder(), out)
    return out


def test_a_converted_model_draws_and_reads(folder):
    pipe = CM3Pipeline.from_pretrained(folder)
    first, _ = pipe.draw("a large red circle", n=2, seed=3, guidance=3.0)
    assert first.image.size == (8, 8)
    assert first.codes.shape == (2, 2)
    assert pipe.draw("a large red circle", seed=3, guidance=3.0)[0].codes.tolist() == first.codes.tolist()
    assert isinstance(pipe.caption(PICTURE), str)
    assert isinstance(pipe.ask(PICTURE, "how many circles?"), str)
    assert pipe.edit(PICTURE, "make it blue").size == (8, 8)
    assert pipe.infill(PICTURE, box=(0, 0, 5, 5)).size == (8, 8)
    pieces = list(pipe.stream(Document("d", (TextSegment("two"),)), limit=12, temperature=1.0))
    assert pieces[-1].tokens <= 12
    [pair] = pipe.imagine(limit=3)
    assert pair.images[0].image.size == (8, 8)


def test_a_converted_model_trains_pictures_and_texts(folder):
    opened = open_model_folder(folder)
    tokens = opened.tokenizer.encode(Document("d", (TextSegment("a blue square"), ImageSegment(image=PICTURE))))
    ids = torch.from_numpy(tokens.token_ids)[None]
    is_image = torch.from_numpy(opened.tokenizer.vocab.is_image(tokens.token_ids))
    optimizer = torch.optim.AdamW(opened.model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = opened.model(ids, labels=ids).loss
        loss.backward()
        if not losses:
            rows = opened.model.lm_head.weight.grad.abs().sum(dim=1)
            assert (rows[opened.tokenizer.vocab.image_start : opened.tokenizer.vocab.image_stop] > 0).all()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert is_image.sum() == 4
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] / 2


def test_the_command_finds_the_format_out(transformers_folder, original_folder, tmp_path, capsys):
    for source, name in ((transformers_folder(), "chameleon"), (original_folder(1) / "models" / "7b", "chameleon-original")):
        assert detect(source) == name
        assert cli.run(["convert", str(source), str(tmp_path / name), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["format"], told["out"]) == (name, str(tmp_path / name))
        artefact.verify(tmp_path / name, kind="model")
    assert cli.run(["convert", str(tmp_path / "chameleon"), str(tmp_path / "back"), "--to", "chameleon"]) == 0
    assert detect(tmp_path / "back") == "chameleon"
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_source_without_decoder_asks_for_one(transformers_folder, original_folder, tmp_path):
    source = transformers_folder(decoder=False)
    with pytest.raises(InputError, match=r"no decoder .* --image-tokenizer"):
        convert(source, tmp_path / "ours")
    assert not list(tmp_path.iterdir())
    convert(source, tmp_path / "ours", image_tokenizer=original_folder(1) / "tokenizer" / "vqgan.ckpt")
    assert CM3Pipeline.from_pretrained(tmp_path / "ours").generate("two circles")[0].size == (8, 8)


def _command(arguments: list, capsys) -> tuple[int, str]:
    code = cli.run(["convert", *map(str, arguments)])
    return code, capsys.readouterr().err


def test_what_the_command_refuses(folder, transformers_folder, tmp_path, capsys):
    source = transformers_folder()
    empty = tmp_path / "empty"
    empty.mkdir()
    damaged = tmp_path / "damaged"
    shutil.copytree(source, damaged)
    with open(damaged / "model.safetensors", "r+b") as stream:
        stream.truncate(5000)
    odd = tmp_path / "odd"
    shutil.copytree(source, odd)
    (odd / "config.json").write_text(json.dumps({**json.loads((source / "config.json").read_text()), "hidden_act": "gelu"}))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    out = tmp_path / "out"
    cases = [
        ([tmp_path / "nowhere", out], 2, "there is none"),
        ([source / "config.json", out], 2, "it is a file"),
        ([empty, out], 2, "of no known format (chameleon, chameleon-original); it holds nothing"),
        ([source, out, "--from", "chamelion"], 2, "did you mean 'chameleon'"),
        ([damaged, out], 4, "no readable safetensors file"),
        ([odd, out], 4, "hidden_act='gelu' is a variant"),
        ([source, taken], 5, "is not an artefact folder, so it is not replaced"),
        ([folder, out], 2, "say which with --to"),
        ([source, out, "--to", "chameleon"], 4, "is not an artefact folder"),
        ([folder, taken, "--to", "chameleon"], 5, "is there already"),
        ([folder, out, "--to", "chameleon", "--shards", "2"], 2, "no model-parallel shards"),
        ([source, out, "--shards", "2"], 2, "with --to"),
        ([folder, out, "--to", "chameleon", "--from", "chameleon"], 2, "exclude each other"),
    ]
    for arguments, code, words in cases:
        got, message = _command(arguments, capsys)
        assert (got, message.count("\n")) == (code, 1), message
        assert words in message
        assert not out.exists()
    assert (taken / "thesis.txt").read_text() == "mine"
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_model_of_another_kind_is_not_written_as_chameleon(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "activation": "relu"}))
    (other / "manifest.json").unlink()
    opened = open_model_folder(folder)
    with artefact.writing(tmp_path / "relu", kind="language_model") as place:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "token_layout.json"):
            shutil.copy(other / name, place / name)
    with pytest.raises(UsageError, match=r"has no image_tokenizer/.*--image-tokenizer"):
        export(tmp_path / "relu", tmp_path / "out", "chameleon")
    with pytest.raises(UsageError, match="activation='swiglu' alone, this model has 'relu'"):
        export(tmp_path / "relu", tmp_path / "out", "chameleon", image_tokenizer=opened.parts.image_tokenizer)
    with pytest.raises(StorageError, match="is there already"):
        export(folder, folder, "chameleon")
