"""From documents to token shards: everything accounted, the same bytes again, parts that do not fit refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cm3.core import artefact
from cm3.core.errors import ArtefactError, BudgetError, CM3Error, InputError, RunLockedError
from cm3.documents.readers import read_documents
from cm3.model_folder import Parts, assemble_model_folder
from cm3.pretrain.run import ModelSection, build_model
from cm3.samples import PictureSampler
from cm3.sequences.shards import TokenShards
from cm3.tokenize import own_tokenizer, parts, tokenize, train_document_tokenizer, workers
from cm3.tokenize.merging import merge
from cm3.tokenize.parts import TokenizeJob
from cm3.tokens import DocumentTokenizer
from cm3.tokens.document_tokenizer import CODEBOOK_FILE
from cm3.train.runlock import run_lock
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


def image_tokenizer(path: Path, codebook_size: int = 8, seed: int = 0) -> Path:
    torch.manual_seed(seed)
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
    foreign = image_tokenizer(tmp_path / "foreign", seed=1)  # of the same sizes
    for tokenizer in (tmp_path / "tokenizer", a_model(tmp_path / "model", tmp_path / "tokenizer", first)):
        with pytest.raises(
            ArtefactError, match=rf"{tokenizer.name} was made with the image tokenizer \w{{12}}, .*foreign is \w{{12}}"
        ):
            tokenize(data, tokenizer, foreign, tmp_path / "tokens")
        tokenize(data, tokenizer, first, tmp_path / "tokens")
    with pytest.raises(ArtefactError, match=r"tokens was made with the image tokenizer \w{12}, .*foreign is \w{12}"):
        PictureSampler(tmp_path / "tokens", foreign, TokenShards(tmp_path / "tokens").vocab)


def a_model(path: Path, tokenizer: Path, images: Path) -> Path:
    """A model folder with that document tokenizer and image tokenizer."""
    own = DocumentTokenizer.load(tokenizer)
    model = build_model(
        ModelSection(overrides={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}), own.vocab, 0
    )
    return assemble_model_folder(path, model, own, Parts(image_tokenizer=images))


def test_no_text_to_train_on(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "pictures" / "a.png")
    with pytest.raises(InputError, match="none of the documents has a text"):
        documents = read_documents(tmp_path / "pictures")
        train_document_tokenizer(documents, image_tokenizer(tmp_path / "image_tokenizer"), tmp_path / "tokenizer")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of five records, so that twelve make three."""
    make = workers.make_job
    monkeypatch.setattr(workers, "make_job", lambda *arguments: replace(make(*arguments), records_per_part=5))


@pytest.fixture
def tokenizers(data: Path, tmp_path: Path) -> tuple[Path, Path]:
    pictures = image_tokenizer(tmp_path / "image_tokenizer")
    train_document_tokenizer(read_documents(data), pictures, tmp_path / "tokenizer", 300)
    return tmp_path / "tokenizer", pictures


def test_any_number_of_workers_gives_the_same_bytes(
    data: Path, tmp_path: Path, small_parts: None, tokenizers: tuple[Path, Path]
) -> None:
    one = tokenize(data, *tokenizers, tmp_path / "one", workers=1)
    two = tokenize(data, *tokenizers, tmp_path / "two", workers=2)
    assert one == two
    assert artefact.fingerprint(tmp_path / "one") == artefact.fingerprint(tmp_path / "two")
    assert not workers.parts_folder(tmp_path / "two").exists()


def test_an_interrupted_call_goes_on(
    data: Path, tmp_path: Path, small_parts: None, tokenizers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize(data, *tokenizers, tmp_path / "whole", workers=1)
    made: list[int] = []

    def counted(job: TokenizeJob, key: str, number: int, *others: Any) -> int:
        made.append(number)
        if made == [0, 1]:
            raise KeyboardInterrupt
        return original(job, key, number, *others)

    original = parts._make_part
    monkeypatch.setattr(parts, "_make_part", counted)
    with pytest.raises(KeyboardInterrupt):
        tokenize(data, *tokenizers, tmp_path / "tokens", workers=1)
    assert not (tmp_path / "tokens").exists()
    account = tokenize(data, *tokenizers, tmp_path / "tokens", workers=1)
    assert (made, account["seen"], account["ok"]) == ([0, 1, 1, 2], COUNT, COUNT)
    assert artefact.fingerprint(tmp_path / "tokens") == artefact.fingerprint(tmp_path / "whole")


def test_its_own_tokenizer_is_kept_only_while_what_decided_it_is_the_same(data: Path, tmp_path: Path) -> None:
    first, other, out = image_tokenizer(tmp_path / "first"), image_tokenizer(tmp_path / "other", seed=1), tmp_path / "own"
    made: list[tuple[int, str]] = []

    def make(images: Path, size: int) -> None:
        own_tokenizer(data, images, out, size)
        made.append((DocumentTokenizer.load(out).text.vocab_size, artefact.verify(out).provenance["image_tokenizer"][:8]))

    make(first, 258)
    stamp = (out / artefact.MANIFEST).stat().st_ino
    make(first, 258)
    assert (out / artefact.MANIFEST).stat().st_ino == stamp
    make(first, 260)
    make(other, 260)
    codes = [artefact.fingerprint(images)[:8] for images in (first, other)]
    assert made == [(258, codes[0]), (258, codes[0]), (260, codes[0]), (260, codes[1])]
    with data.open("a") as stream:
        stream.write('{"id": "12", "text": "one more"}\n')
    make(other, 260)
    assert artefact.verify(out).provenance["texts"] == COUNT + 1
    (out / CODEBOOK_FILE).write_bytes(b"")
    make(other, 260)


def test_killed_calls_go_on_to_the_same_bytes(
    data: Path, tmp_path: Path, small_parts: None, tokenizers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch,
    in_child: Callable[..., int], times: Callable[[int], range],
) -> None:  # fmt: skip
    """kill -9 at random moments of the making and the joining of the parts."""
    tokenize(data, *tokenizers, tmp_path / "whole", workers=1)
    made, out, rng, kills = parts._make_part, tmp_path / "tokens", random.Random(0), 0
    monkeypatch.setattr(parts, "_make_part", lambda *arguments: (time.sleep(0.03), made(*arguments))[1])
    for _ in times(4):
        pid = in_child(lambda: tokenize(data, *tokenizers, out, workers=1), wait=False)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(pid, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        if rng.random() < 0.3 or out.exists():
            tokenize(data, *tokenizers, out, workers=1)
            assert artefact.fingerprint(out) == artefact.fingerprint(tmp_path / "whole")
            assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith((".tmp-", ".old-"))]
            shutil.rmtree(out)
    tokenize(data, *tokenizers, out, workers=1)
    assert artefact.fingerprint(out) == artefact.fingerprint(tmp_path / "whole")
    assert kills


def test_parts_of_other_records_or_damaged_ones_are_made_anew(data: Path, tmp_path: Path, tokenizers: tuple[Path, Path]) -> None:
    job = replace(workers.make_job(data, *tokenizers, tmp_path / "parts"), records_per_part=5)
    assert list(parts.make_parts(job, job.key, frozenset({0, 2}))) == [5, 2]
    assert [parts.is_finished(job, number, job.key) for number in range(3)] == [True, False, True]
    (job.part(2) / parts.TOKENS / "tokens.npy").write_bytes(b"")
    assert not parts.is_finished(job, 2, job.key)
    with data.open("a") as stream:
        stream.write('{"id": "12", "text": "one more"}\n')
    assert not parts.is_finished(job, 0, job.key)


@pytest.mark.parametrize("vanished", [[parts.TOKENS], [parts.TOKENS, parts.ACCOUNT]])
def test_a_part_whose_content_vanished_while_it_was_written_does_not_count(
    data: Path, tmp_path: Path, tokenizers: tuple[Path, Path], vanished: list[str]
) -> None:
    """Its manifest agrees with what was left; the account does not."""
    job = replace(workers.make_job(data, *tokenizers, tmp_path / "parts"), records_per_part=5)
    list(parts.make_parts(job, job.key, frozenset(range(3))))
    with artefact.writing(job.part(1), parts.PART_KIND, {"key": job.key}) as folder:
        shutil.copytree(job.part(1), folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*vanished, artefact.MANIFEST))
    artefact.verify(job.part(1))
    assert [parts.is_finished(job, number, job.key) for number in range(3)] == [True, False, True]
    with pytest.raises(ArtefactError, match="part-000001 holds 0 documents, its account has 5|account.json is missing"):
        merge(job, tmp_path / "tokens", 3, 0.1)
    assert not (tmp_path / "tokens").exists()


def test_pictures_and_ids_that_only_show_later_are_accounted_for(
    data: Path, tmp_path: Path, small_parts: None, tokenizers: tuple[Path, Path]
) -> None:
    whole = (data.parent / "3.png").read_bytes()
    (data.parent / "3.png").write_bytes(whole[: len(whole) // 2])  # its header is fine
    with data.open("a") as stream:
        stream.write('{"id": "0", "text": "an id from the first part, in the third"}\n')
    account = tokenize(data, *tokenizers, tmp_path / "tokens", budget=0.5, workers=1)
    assert (account["seen"], account["ok"]) == (COUNT + 1, COUNT - 1)
    assert account["rejected"] == {"truncated_image": 1, "duplicate_key": 1}
    assert len(TokenShards(tmp_path / "tokens")) == COUNT - 1


def test_a_second_process_and_a_dead_worker(data: Path, tmp_path: Path, tokenizers: tuple[Path, Path]) -> None:
    with run_lock(workers.parts_folder(tmp_path / "tokens")), pytest.raises(RunLockedError, match=f"process {os.getpid()}"):
        tokenize(data, *tokenizers, tmp_path / "tokens")
    with pytest.raises(CM3Error, match=r"died \(exit code -9.*fewer --workers"):
        workers._raise_if_dead([SimpleNamespace(exitcode=None), SimpleNamespace(exitcode=-9)])  # type: ignore[list-item]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_datatrove_tasks_make_the_same_bytes(
    data: Path, tmp_path: Path, small_parts: None, tokenizers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datatrove", reason="the extra `scale` is not installed")
    from cm3.tokenize import scale

    monkeypatch.setattr(scale, "make_job", workers.make_job)  # the small parts
    tokenize(data, *tokenizers, tmp_path / "one", workers=1)
    (encode,), (join,) = scale.pipelines(data, *tokenizers, tmp_path / "many")
    assert list(encode.run(None, rank=1, world_size=2)) == []
    with pytest.raises(ArtefactError, match=r"2 of 3 parts are missing \(first: 0\)"):
        list(join.run())
    assert list(encode.run(None, rank=0, world_size=2)) == []
    assert list(join.run(None, rank=1, world_size=2)) == []  # only the first task joins
    assert not (tmp_path / "many").exists()
    assert list(join.run()) == []
    assert artefact.fingerprint(tmp_path / "many") == artefact.fingerprint(tmp_path / "one")
    assert json.loads((tmp_path / "many-account.json").read_text())["ok"] == COUNT
