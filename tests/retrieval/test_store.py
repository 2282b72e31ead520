"""Documents come back from the store as they went in, and a store that contradicts itself is refused."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cm3.core.errors import ArtefactError, InputError
from cm3.documents.document import Document, ImageSegment, TextSegment
from retrieval.document_writer import DocumentWriter
from retrieval.store import DocumentStore, content_hash

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8))
DOCUMENTS = [
    Document(
        "a", (TextSegment("first\nline"), ImageSegment(image=NOISE), TextSegment("Ünïcode ☃")), {"n": 1, "deep": {"x": [1]}}
    ),
    Document("b/ü", (ImageSegment(codes=np.arange(6).reshape(2, 3)),)),
    Document("c", (TextSegment("only words"),)),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path, DOCUMENTS)


def written(folder: Path, documents: list[Document], max_image_side: int | None = None) -> Path:
    with closing(DocumentWriter(folder, max_image_side)) as writer:
        for document in documents:
            writer.add(document)
        writer.finish()
    return folder


def test_round_trip(folder: Path) -> None:
    store = DocumentStore(folder)
    assert len(store) == 3
    assert store.ids == ["a", "b/ü", "c"]
    for row, original in enumerate(DOCUMENTS):
        read = store[row]
        assert (read.id, read.text, dict(read.meta)) == (original.id, original.text, dict(original.meta))
        assert [type(segment) for segment in read.segments] == [type(segment) for segment in original.segments]
    assert (np.asarray(store[0].images[0].load()) == np.asarray(NOISE)).all()
    codes = store[1].images[0].codes
    assert codes is not None
    assert codes.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_large_pictures_are_stored_reduced(tmp_path: Path) -> None:
    big = Document("big", (ImageSegment(image=Image.new("RGB", (100, 40))),))
    assert DocumentStore(written(tmp_path, [big], max_image_side=50))[0].images[0].load().size == (50, 20)


def test_a_double_id_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'a'"):
        written(tmp_path, [DOCUMENTS[0], DOCUMENTS[0]])


def test_meta_that_is_no_json_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'m'"):
        written(tmp_path, [Document("m", (TextSegment("x"),), {"set": {1}})])


def test_content_hash_is_that_of_text_and_pixels() -> None:
    picture = Image.new("RGB", (3, 2), "red")
    pair = Document.pair("a", "red", picture)
    assert content_hash(pair) == content_hash(Document.pair("b", "red", picture.copy()))
    assert content_hash(pair)[1] == content_hash(Document.pair("a", "other", picture))[1]
    assert content_hash(pair)[0] != content_hash(Document.pair("a", "other", picture))[0]
    assert content_hash(pair)[1] != content_hash(Document.pair("a", "red", picture.rotate(90, expand=True)))[1]
    assert content_hash(DOCUMENTS[2])[1] == 0
    assert content_hash(DOCUMENTS[1])[0] == 0


@pytest.mark.parametrize("name", ["documents.jsonl", "offsets.npy", "pictures.bin", "ids.json", "content.npy"])
def test_a_missing_file_is_an_artefact_error(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtefactError, match=name):
        DocumentStore(folder)


@pytest.mark.parametrize("ids", [["a", "c", "b/ü"], ["a", "a", "c"], ["a", "b/ü"], [1, 2, 3], {}])
def test_ids_that_are_not_one_to_one_are_refused(ids: object, folder: Path) -> None:
    (folder / "ids.json").write_text(json.dumps(ids))
    with pytest.raises(ArtefactError):
        [store[row] for store in [DocumentStore(folder)] for row in range(3)]


def test_a_wrong_table_is_refused(folder: Path) -> None:
    offsets = np.load(folder / "offsets.npy")
    for wrong in (offsets[:-1], offsets[::-1], offsets + 1, offsets.astype(np.int32), offsets[:0]):
        np.save(folder / "offsets.npy", wrong)
        with pytest.raises(ArtefactError):
            DocumentStore(folder)


def test_a_pickled_table_is_never_run(folder: Path) -> None:
    np.save(folder / "content.npy", np.array([{"code": "run"}], dtype=object), allow_pickle=True)
    with pytest.raises(ArtefactError, match=r"content\.npy"):
        DocumentStore(folder)
