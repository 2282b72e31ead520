"""A build that is cut short goes on where it was: nothing is encoded twice, and the bank is that of a run without a stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import retrieval
import retrieval.building as build_module
from cm3.core.artefact import fingerprint, verify
from cm3.core.errors import CM3Error, RunLockedError
from cm3.documents.document import Document
from cm3.documents.report import ReadReport
from cm3.documents.writers import write_documents
from cm3.train.runlock import run_lock
from retrieval import bank_writer
from retrieval.config import BuildConfig
from retrieval.encoders.hashing import HashingEncoder

SMALL = BuildConfig(batch_size=4)


class CountingEncoder(HashingEncoder):
    texts = 0

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        CountingEncoder.texts += len(texts)
        return super().encode_texts(texts)


@pytest.fixture(autouse=True)
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "HashingEncoder", CountingEncoder)
    monkeypatch.setattr(bank_writer, "CHECKPOINT_S", 0.0)
    CountingEncoder.texts = 0


def stopped(documents: Sequence[Document], after: int) -> Iterator[Document]:
    yield from documents[:after]
    raise KeyboardInterrupt


def interrupted_build(documents: Sequence[Document], after: int, out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        retrieval.build(stopped(documents, after), out, "hashing", SMALL)
    assert not out.exists()
    assert (out.parent / f".{out.name}.building").is_dir()
    CountingEncoder.texts = 0


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_goes_on_and_gives_the_same_bank(pairs: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retrieval.build(pairs, tmp_path / "whole", "hashing", SMALL)
    interrupted_build(pairs, 30, tmp_path / "bank")
    skipped: list[int] = []
    monkeypatch.setattr("cm3.core.progress.Progress.skip", lambda bar, n: skipped.append(n))
    retrieval.build(pairs, tmp_path / "bank", "hashing", SMALL)
    assert CountingEncoder.texts == 48 - 28  # seven whole batches were kept
    assert sum(skipped) == 28  # and tell nothing of the time left
    assert fingerprint(tmp_path / "bank") == fingerprint(tmp_path / "whole")
    assert names(tmp_path) == ["bank", "whole"]


def test_the_account_is_that_of_the_whole_source(pairs: list[Document], tmp_path: Path) -> None:
    write_documents(pairs, tmp_path / "data")
    interrupted_build(sorted(pairs, key=lambda pair: pair.id), 20, tmp_path / "bank")
    report = ReadReport()
    built = retrieval.build(tmp_path / "data", tmp_path / "bank", "hashing", SMALL, report)
    assert report.ok == report.seen == built.count == 48


@pytest.mark.parametrize("kind", ["changed", "inserted", "shorter"])
def test_a_source_that_changed_costs_what_follows_the_change(kind: str, pairs: list[Document], tmp_path: Path) -> None:
    interrupted_build(pairs, 40, tmp_path / "bank")
    changed = Document.pair(pairs[10].id, "other words", pairs[10].images[0].load())
    new = Document.pair("new", "new words", pairs[0].images[0].load())
    documents = {
        "changed": [*pairs[:10], changed, *pairs[11:]],
        "inserted": [*pairs[:10], new, *pairs[10:]],
        "shorter": pairs[:10],
    }[kind]
    retrieval.build(documents, tmp_path / "whole", "hashing", SMALL)
    CountingEncoder.texts = 0
    retrieval.build(documents, tmp_path / "bank", "hashing", SMALL)
    assert CountingEncoder.texts == len(documents) - 10
    for row, document in enumerate(documents):
        stored = retrieval.open(tmp_path / "bank").store[row]
        assert (stored.id, stored.text) == (document.id, document.text)
    assert fingerprint(tmp_path / "bank") == fingerprint(tmp_path / "whole")


def test_another_encoder_starts_anew(pairs: list[Document], clip_folder: Path, tmp_path: Path) -> None:
    interrupted_build(pairs, 40, tmp_path / "bank")
    built = retrieval.build(pairs, tmp_path / "bank", clip_folder, SMALL)
    assert retrieval.open(built.path).info.encoder_kind == "clip"
    assert built.count == 48


def test_adding_goes_on_too(pairs: list[Document], tmp_path: Path) -> None:
    retrieval.build(pairs[:20], tmp_path / "bank", "hashing", SMALL)
    with pytest.raises(KeyboardInterrupt):
        retrieval.add(tmp_path / "bank", stopped(pairs[20:], 16), SMALL)
    assert len(retrieval.open(tmp_path / "bank")) == 20
    assert retrieval.add(tmp_path / "bank", pairs[20:], SMALL).count == 48
    assert list(retrieval.open(tmp_path / "bank").ids) == [pair.id for pair in pairs]
    assert names(tmp_path) == ["bank"]


def test_a_damaged_record_of_progress_starts_anew(pairs: list[Document], tmp_path: Path) -> None:
    interrupted_build(pairs, 40, tmp_path / "bank")
    (tmp_path / ".bank.building" / bank_writer.PROGRESS).write_text("{")
    assert retrieval.build(pairs, tmp_path / "bank", "hashing", SMALL).count == 48
    assert CountingEncoder.texts == 48


def test_a_second_builder_is_refused(pairs: list[Document], tmp_path: Path) -> None:
    with run_lock(tmp_path / ".bank.building"), pytest.raises(RunLockedError, match="in use by process"):
        retrieval.build(pairs, tmp_path / "bank", "hashing", SMALL)


def test_an_index_that_is_refused_keeps_the_encoded_documents(pairs: list[Document], tmp_path: Path) -> None:
    with pytest.raises(Exception, match="needs at least"):
        retrieval.build(iter(pairs), tmp_path / "bank", "hashing", BuildConfig(batch_size=4, index="ivf"))  # unknown how many
    CountingEncoder.texts = 0
    assert retrieval.build(pairs, tmp_path / "bank", "hashing", SMALL).count == 48
    assert CountingEncoder.texts == 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (BuildConfig(index="ivf"), "needs at least"),
        (BuildConfig(index="flatt"), "flat"),
        (BuildConfig(memory_limit_gib=1e-6), "GiB"),
    ],
)
def test_an_index_that_cannot_be_is_refused_before_anything_is_encoded(
    config: BuildConfig, words: str, pairs: list[Document], tmp_path: Path
) -> None:
    with pytest.raises(CM3Error, match=words):
        retrieval.build(pairs, tmp_path / "bank", "hashing", config)
    assert CountingEncoder.texts == 0


@pytest.mark.parametrize("checkpoint_s", [0.0, 60.0])
def test_a_run_that_died_after_publishing_shares_nothing_with_the_next(
    checkpoint_s: float, pairs: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scratch folder, whose files the published bank holds too, is still there when the next build starts."""
    monkeypatch.setattr(bank_writer, "CHECKPOINT_S", checkpoint_s)
    with monkeypatch.context() as patched:
        patched.setattr(bank_writer.shutil, "rmtree", lambda *_, **__: None)
        retrieval.build(pairs[:20], tmp_path / "bank", "hashing", SMALL)
    assert (tmp_path / ".bank.building" / "vectors.npy").stat().st_nlink > 1
    reader = retrieval.open(tmp_path / "bank")
    assert retrieval.build(pairs[:10] + pairs[30:], tmp_path / "bank", "hashing", SMALL).count == 28
    verify(reader.folder)  # held, so not removed, and not a byte of it changed
    verify(tmp_path / "bank")
    assert names(tmp_path) == ["bank"]
