"""The memory bank: finds itself, says what is wrong with a query, and refuses anything that is not what it was built as."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import retrieval
from cm3.core.artefact import current, writing
from cm3.core.errors import ArtefactError, CM3Error, InputError, UsageError
from cm3.core.protocols import Retriever
from cm3.documents.document import Document
from retrieval.config import BuildConfig
from retrieval.embedding import embed_documents
from retrieval.encoders.hashing import HashingEncoder


@pytest.mark.parametrize("kind", ["hashing_bank", "clip_bank"])
def test_every_document_finds_itself_first(kind: str, pairs: list[Document], request: pytest.FixtureRequest) -> None:
    bank = retrieval.open(request.getfixturevalue(kind))
    assert isinstance(bank, Retriever)
    found = bank.search_vectors(embed_documents(pairs, bank.encoder), 3)
    assert [neighbors[0].document.id for neighbors in found] == [pair.id for pair in pairs]
    assert [neighbor.rank for neighbor in found[0]] == [0, 1, 2]
    assert found[0][0].score == pytest.approx(1, abs=1e-5)
    first = found[5][0].document
    assert first.text == pairs[5].text
    assert first.meta == pairs[5].meta
    assert (np.asarray(first.images[0].load()) == np.asarray(pairs[5].images[0].load())).all()


def test_search_by_text_by_picture_and_by_both(hashing_bank: Path, pairs: list[Document]) -> None:
    bank, wanted = retrieval.open(hashing_bank), pairs[17]
    image = wanted.images[0].load()
    assert bank.search(text=wanted.text)[0].document.id == wanted.id
    assert bank.search(image=image)[0].document.id == wanted.id
    both = bank.search(text=wanted.text, image=image, k=5)
    assert both[0].document.id == wanted.id
    assert both[0].score > bank.search(text=wanted.text)[0].score
    assert [hit.score for hit in both] == sorted((hit.score for hit in both), reverse=True)


def test_more_than_there_are_gives_all(hashing_bank: Path, pairs: list[Document]) -> None:
    hits = retrieval.open(hashing_bank).search(text="red", k=1000)
    assert sorted(hit.document.id for hit in hits) == sorted(pair.id for pair in pairs)


@pytest.mark.parametrize("query", [{}, {"text": ""}, {"text": " \n"}])
def test_a_query_without_content_is_an_input_error(query: dict, hashing_bank: Path) -> None:
    with pytest.raises(InputError, match="query"):
        retrieval.open(hashing_bank).search(**query)


@pytest.mark.parametrize("k", [0, -3])
def test_k_below_one_is_a_usage_error(k: int, hashing_bank: Path) -> None:
    with pytest.raises(UsageError, match=f"k is {k}"):
        retrieval.open(hashing_bank).search(text="red", k=k)


def test_query_vectors_of_another_width_or_with_nan_are_refused(hashing_bank: Path) -> None:
    bank = retrieval.open(hashing_bank)
    with pytest.raises(UsageError, match=r"\(2, 7\)"):
        bank.nearest(np.ones((2, 7), np.float32), 1)
    with pytest.raises(InputError, match="NaN"):
        bank.nearest(np.full((1, bank.info.width), np.nan, np.float32), 1)


def test_documents_by_id(hashing_bank: Path, pairs: list[Document]) -> None:
    bank = retrieval.open(hashing_bank)
    assert len(bank) == len(bank.ids) == len(pairs)
    assert bank.document(pairs[3].id).text == pairs[3].text
    with pytest.raises(InputError, match="'nobody'"):
        bank.document("nobody")


def test_another_encoder_is_an_error(clip_bank: Path, hashing_bank: Path, clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="different encoders do not compare"):
        retrieval.open(clip_bank).check_encoder(HashingEncoder())
    other = tmp_path / "other"
    shutil.copytree(clip_folder, other)
    settings = json.loads((other / "preprocessor_config.json").read_text())
    settings["image_mean"] = [0.5, 0.5, 0.5]
    (other / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ArtefactError, match="different encoders do not compare"):
        retrieval.open(clip_bank, encoder=other).search(text="red")
    assert retrieval.open(clip_bank, encoder=clip_folder).search(text="red")


def test_a_bank_without_a_copy_uses_the_encoder_beside_it(clip_folder: Path, pairs: list[Document], tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "encoder")
    retrieval.build(pairs, tmp_path / "memory", config=BuildConfig(embed_encoder=False))
    assert not (current(tmp_path / "memory") / "encoder").exists()
    assert retrieval.open(tmp_path / "memory").search(text=pairs[0].text)
    shutil.rmtree(tmp_path / "encoder")
    bank = retrieval.open(tmp_path / "memory")  # opening and searching by vector still work
    assert len(bank.search_vectors(np.asarray(bank.vectors[:1]), 2)[0]) == 2
    with pytest.raises(ArtefactError, match="carries no encoder"):
        bank.search(text="red")


@pytest.mark.parametrize("index", ["flat", "ivf", "hnsw"])
def test_any_flipped_bit_and_any_cut_are_refused(
    index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: Callable[[int], range]
) -> None:
    """Before faiss reads the file: flips and cuts at random places of every file. `CM3_DRILLS=84` tries 4,750."""
    documents = [Document.pair(f"d{row}", f"word{row} word{row % 7}", _gray(row)) for row in range(200)]
    retrieval.build(documents, tmp_path / "bank", "hashing", BuildConfig(index=index, min_recall=0))
    monkeypatch.setattr("retrieval.index.approximate.read_index", _must_not_be_read)
    files = [file for file in (tmp_path / "bank").rglob("*") if file.is_file() and file.name != "manifest.json"]
    rng = np.random.default_rng(0)
    for trial in times(57):
        file = files[int(rng.integers(len(files)))]
        original = file.read_bytes()
        place = int(rng.integers(len(original)))
        damaged = bytearray(original)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(original[:place] if trial % 19 < 3 else damaged)
        with pytest.raises(ArtefactError, match=file.name.replace(".", r"\.")):
            retrieval.open(tmp_path / "bank")
        file.write_bytes(original)
    monkeypatch.undo()
    assert len(retrieval.open(tmp_path / "bank")) == 200


def test_parts_of_two_banks_are_refused_even_with_right_hashes(hashing_bank: Path, pairs: list[Document], tmp_path: Path) -> None:
    retrieval.build(pairs[:-1], tmp_path / "smaller", "hashing")
    for name in ("vectors.npy", "ids.json", "content.npy", "bank.json"):
        with writing(tmp_path / "mixed", "memory") as folder:
            shutil.copytree(current(hashing_bank), folder, dirs_exist_ok=True)
            shutil.copyfile(current(tmp_path / "smaller") / name, folder / name)
            (folder / "manifest.json").unlink()
        with pytest.raises(ArtefactError):
            retrieval.open(tmp_path / "mixed")


@pytest.mark.parametrize("change", [{"format": 2}, {"count": 0}, {"metric": "l2"}, {"surprise": 1}])
def test_a_description_of_another_version_is_refused(change: dict, hashing_bank: Path, tmp_path: Path) -> None:
    with writing(tmp_path / "changed", "memory") as folder:
        shutil.copytree(current(hashing_bank), folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        info = json.loads((folder / "bank.json").read_text())
        (folder / "bank.json").write_text(json.dumps({**info, **change}))
    with pytest.raises(ArtefactError, match="another version"):
        retrieval.open(tmp_path / "changed")


def test_what_is_no_bank_is_an_artefact_error(clip_folder: Path, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing", clip_folder):
        with pytest.raises(CM3Error):
            retrieval.open(path)


def _must_not_be_read(*_: object) -> None:
    raise AssertionError("faiss was given a damaged file")


def _gray(level: int) -> Image.Image:
    return Image.new("RGB", (6, 6), (level, 255 - level, level // 2))
