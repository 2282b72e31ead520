"""Publishing under fire: builders that are killed at random moments, and readers that search while others publish.

`CM3_DRILLS=38` in the environment runs three hundred kills (the suite runs a few).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import retrieval
from cm3.core.artefact import sweep
from cm3.core.errors import RunLockedError
from cm3.core.generations import CURRENT
from cm3.documents.document import Document
from retrieval.bank_writer import BankWriter
from retrieval.config import BuildConfig
from retrieval.encoders.hashing import HashingEncoder

QUICK = BuildConfig(max_image_side=None)


def edition(number: int) -> list[Document]:
    """The documents of one edition; each says which one it belongs to."""
    return [Document.pair(f"{row}", f"edition {number} word{row}", _picture(row)) for row in range(12 + number % 5)]


def _picture(row: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (20 * row % 256, 99, 7))


def edition_of(bank: retrieval.MemoryBank) -> int:
    """The edition that all documents of `bank` belong to."""
    numbers = {int(document.text.split()[1]) for document in (bank.store[row] for row in range(len(bank)))}
    assert len(numbers) == 1
    number = numbers.pop()
    assert len(bank) == len(edition(number))
    return number


def publish_forever(out: Path, first: int) -> None:
    """In a child process: editions without end, with and without an index file."""
    for number in range(first, first + 10_000):
        config = QUICK if number % 2 else BuildConfig(index="hnsw", min_recall=0)
        retrieval.build(edition(number), out, "hashing", config)


def test_a_killed_builder_leaves_the_old_bank_or_the_new_one(tmp_path: Path, times: Callable[[int], range]) -> None:
    out, rng, last, died_building = tmp_path / "bank", np.random.default_rng(0), 0, 0
    retrieval.build(edition(0), out, "hashing", QUICK)
    for _ in times(8):
        child = os.fork()
        if child == 0:
            try:
                publish_forever(out, last + 1)
            finally:
                os._exit(1)
        time.sleep(float(rng.uniform(0.02, 0.25)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        died_building += any(entry.name.startswith(".") for entry in tmp_path.iterdir())
        found = edition_of(retrieval.open(out))  # verified: every byte
        assert found >= last
        last = found
    retrieval.build(edition(last + 1), out, "hashing", QUICK)
    assert edition_of(retrieval.open(out)) == last + 1
    sweep(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bank"]
    assert sorted(entry.name for entry in out.iterdir())[0] == CURRENT
    assert len(list(out.iterdir())) == 2
    assert last > 0  # the children did publish
    assert died_building > 0  # and died at work


def test_readers_across_publishes_see_one_edition_each(tmp_path: Path) -> None:
    """8 readers × 20 publishes: no error, no answer from two editions, nothing older than what was seen before."""
    out, stop, problems, searches = tmp_path / "bank", threading.Event(), list[str](), [0] * 8
    retrieval.build(edition(0), out, "hashing", QUICK)
    encoder = HashingEncoder()

    def read(number: int) -> None:
        newest = 0
        try:
            while not stop.is_set():
                bank = retrieval.open(out)
                for word in ("word3", "word7"):
                    vector = encoder.encode_texts([f"edition {word}"])
                    editions = {int(hit.document.text.split()[1]) for hit in bank.search_vectors(vector, 5)[0]}
                    if len(editions) != 1 or min(editions) < newest:
                        problems.append(f"reader {number}: {editions} after {newest}")
                    newest = max(editions)
                    searches[number] += 1
                bank.search(text="word3")  # loads the encoder of its own generation, however old that is
                bank.close()
        except Exception as error:
            problems.append(f"reader {number}: {type(error).__name__}: {error}")

    readers = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for reader in readers:
        reader.start()
    for number in range(1, 21):
        retrieval.build(edition(number), out, "hashing", QUICK)
    stop.set()
    for reader in readers:
        reader.join()
    assert problems == []
    assert min(searches) > 0
    retrieval.build(edition(21), out, "hashing", QUICK)
    assert len(list(out.iterdir())) == 2  # nothing is kept that nobody reads


def test_two_changes_at_once_do_not_lose_one(pairs: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retrieval.build(pairs[:9], tmp_path / "bank", "hashing")
    finish = BankWriter.finish

    def overtaken(writer: BankWriter) -> None:
        monkeypatch.setattr(BankWriter, "finish", finish)
        retrieval.build(pairs[:5], tmp_path / "other", "hashing")
        os.rename(tmp_path / "other" / "generation-000001", tmp_path / "bank" / "generation-000007")
        (tmp_path / "bank" / CURRENT).write_text("generation-000007\n")
        finish(writer)

    monkeypatch.setattr(BankWriter, "finish", overtaken)
    with pytest.raises(RunLockedError, match="run the command again"):
        retrieval.add(tmp_path / "bank", pairs[9:12])
    assert len(retrieval.open(tmp_path / "bank")) == 5
    assert retrieval.add(tmp_path / "bank", pairs[9:12]).count == 8
