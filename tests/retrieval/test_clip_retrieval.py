"""The layout of clip-retrieval: written and read again it is the same bank, and what does not fit is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import retrieval
from cm3.core.errors import ArtefactError, InputError, UsageError
from cm3.documents.document import Document, TextSegment
from retrieval.clip_retrieval import count_embedded
from retrieval.encoders.hashing import HashingEncoder

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def exported(hashing_bank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return retrieval.write_clip_retrieval(retrieval.open(hashing_bank), tmp_path_factory.mktemp("clip") / "layout")


def test_round_trip(exported: Path, hashing_bank: Path, tmp_path: Path) -> None:
    built = retrieval.import_clip_retrieval(exported, tmp_path / "bank", "hashing")
    assert count_embedded(exported) == built.count
    before, after = retrieval.open(hashing_bank), retrieval.open(built.path)
    assert list(after.ids) == list(before.ids)
    assert np.abs(np.asarray(after.vectors) - before.vectors).max() < 1e-3  # float16
    for row in range(0, len(before), 7):
        first, second = before.store[row], after.store[row]
        assert (first.text, dict(first.meta)) == (second.text, dict(second.meta))
        assert (np.asarray(first.images[0].load()) == np.asarray(second.images[0].load())).all()
    assert after.search(text=before.store[5].text)[0].document.id == before.ids[5]


def test_the_layout_is_what_other_tools_expect(exported: Path, hashing_bank: Path, pairs: list[Document]) -> None:
    table = parquet.read_table(exported / "metadata" / "metadata_0.parquet")
    assert {"image_path", "caption"} <= set(table.column_names)
    encoder = HashingEncoder()
    for part, expected in (
        ("text", encoder.encode_texts([pair.text for pair in pairs])),
        ("img", encoder.encode_images([pair.images[0].load() for pair in pairs])),
    ):
        vectors = np.load(exported / f"{part}_emb" / f"{part}_emb_0.npy")
        assert vectors.dtype == np.float16
        assert np.abs(vectors - expected).max() < 1e-3
    assert table.column("caption").to_pylist() == [pair.text for pair in pairs]


def write_foreign(folder: Path, rows: list[dict], vectors: np.ndarray, part: str = "text", number: int = 0) -> None:
    """As `clip inference` writes it."""
    for name in (f"{part}_emb", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{part}_emb" / f"{part}_emb_{number}.npy", vectors)
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "metadata" / f"metadata_{number}.parquet")


def test_several_partitions_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (0, 2, 10):
        texts = [f"caption {number} {row}" for row in range(3)]
        rows = [{"image_path": f"{number}/{row}.jpg", "caption": text, "url": "http://x"} for row, text in enumerate(texts)]
        write_foreign(tmp_path / "in", rows, HashingEncoder().encode_texts(texts).astype(np.float16), number=number)
    retrieval.import_clip_retrieval(tmp_path / "in", tmp_path / "bank", "hashing")
    bank = retrieval.open(tmp_path / "bank")
    assert list(bank.ids) == [f"{number}/{row}.jpg" for number in (0, 2, 10) for row in range(3)]
    assert bank.store[4].meta == {"url": "http://x"}
    assert bank.store[4].images == ()
    assert bank.search(text="caption 10 1")[0].document.id == "10/1.jpg"


def good() -> tuple[list[dict], np.ndarray]:
    texts = [f"caption {row}" for row in range(4)]
    return [{"image_path": f"{row}.jpg", "caption": text} for row, text in enumerate(texts)], HashingEncoder().encode_texts(texts)


def nan(vectors: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(vectors))[:, None] == 2, np.nan, vectors)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (nan, InputError, "row 2 of metadata_0.parquet has a vector of zeros, NaN"),
        (lambda vectors: vectors[:3], InputError, "as many as its table has rows"),
        (lambda vectors: vectors[:, :99], ArtefactError, "99 wide, those of the encoder 256"),
        (lambda vectors: np.roll(vectors, 1, axis=1), ArtefactError, "made by another one"),
        (lambda vectors: vectors.astype(np.int32), InputError, "expected floats"),
    ],
)
def test_what_does_not_fit_is_refused(
    change: Callable[[np.ndarray], np.ndarray], error: type[Exception], words: str, tmp_path: Path
) -> None:
    rows, vectors = good()
    write_foreign(tmp_path / "in", rows, change(vectors))
    with pytest.raises(error, match=words):
        retrieval.import_clip_retrieval(tmp_path / "in", tmp_path / "bank", "hashing")
    assert not (tmp_path / "bank").exists()


def test_missing_and_damaged_files_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="metadata_0.parquet"):
        retrieval.import_clip_retrieval(tmp_path, tmp_path / "bank", "hashing")
    rows, vectors = good()
    write_foreign(tmp_path / "in", rows, vectors)
    (tmp_path / "in" / "text_emb" / "text_emb_0.npy").rename(tmp_path / "away.npy")
    with pytest.raises(InputError, match="neither"):
        retrieval.import_clip_retrieval(tmp_path / "in", tmp_path / "bank", "hashing")
    (tmp_path / "in" / "metadata" / "metadata_0.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match="parquet table"):
        retrieval.import_clip_retrieval(tmp_path / "in", tmp_path / "bank", "hashing")


def test_vectors_that_nothing_vouches_for_are_refused(tmp_path: Path) -> None:
    rows, vectors = good()
    write_foreign(tmp_path / "in", rows, vectors, part="img")
    with pytest.raises(UsageError, match="which encoder made its vectors"):
        retrieval.import_clip_retrieval(tmp_path / "in", tmp_path / "bank", "hashing")


def test_documents_without_a_part(tmp_path: Path, pairs: list[Document]) -> None:
    documents = [*pairs[:5], Document("text alone", (TextSegment("only words"),)), Document("picture", (pairs[6].images[0],))]
    retrieval.build(documents, tmp_path / "a", "hashing")
    retrieval.write_clip_retrieval(retrieval.open(tmp_path / "a"), tmp_path / "layout")
    retrieval.import_clip_retrieval(tmp_path / "layout", tmp_path / "b", "hashing")
    first, second = retrieval.open(tmp_path / "a"), retrieval.open(tmp_path / "b")
    assert np.abs(np.asarray(first.vectors) - second.vectors).max() < 1e-3
    assert [document.text for document in map(second.store.__getitem__, range(7))] == [document.text for document in documents]


def test_every_partition_and_both_parts_are_compared(exported: Path, tmp_path: Path) -> None:
    rows, vectors = good()
    noise = np.random.default_rng(0).standard_normal(vectors.shape).astype(np.float32)
    write_foreign(tmp_path / "in", rows, vectors)
    write_foreign(tmp_path / "in", rows, noise, number=1)
    with pytest.raises(ArtefactError, match="metadata_1"):
        retrieval.import_clip_retrieval(tmp_path / "in", tmp_path / "bank", "hashing")
    shutil.copytree(exported, tmp_path / "copy")
    file = tmp_path / "copy" / "img_emb" / "img_emb_0.npy"
    np.save(file, np.random.default_rng(0).standard_normal(np.load(file).shape).astype(np.float16))
    with pytest.raises(ArtefactError, match="the img embeddings"):
        retrieval.import_clip_retrieval(tmp_path / "copy", tmp_path / "bank", "hashing")


@pytest.mark.parametrize("meta", ["not json", "[1]"])
def test_a_column_meta_of_other_tools_is_kept_as_it_is(meta: str, tmp_path: Path) -> None:
    rows, vectors = good()
    write_foreign(tmp_path / "in", [{**row, "meta": meta} for row in rows], vectors)
    built = retrieval.import_clip_retrieval(tmp_path / "in", tmp_path / "bank", "hashing")
    assert retrieval.open(built.path).store[0].meta["meta"] == meta
