"""What is written reads back as the same documents, in the same bytes every time, or not at all."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from cm3.core.artefact import verify, writing
from cm3.core.errors import InputError, UsageError
from cm3.documents import Document, ImageError, ImageSegment, ReadOptions, TextSegment, read_documents, write_documents
from cm3.documents.document import Segment
from cm3.documents.writers import file_key

Png = Callable[[int], bytes]


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8))


def content(document: Document) -> tuple:
    """A document as plain values that compare by content."""

    def plain(segment: Segment) -> object:
        if isinstance(segment, TextSegment):
            return segment.text
        return segment.codes.tolist() if segment.codes is not None else (segment.load().size, segment.load().tobytes())

    return document.id, [plain(segment) for segment in document.segments], dict(document.meta)


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


DOCUMENTS = [
    Document.pair("plain", "a caption", picture(0), {"n": 1, "nested": {"a": [1, None, "ü"]}}),
    Document("image first", (ImageSegment(image=picture(1)), TextSegment("then text"))),
    Document("edit/1", (TextSegment("make it red"), ImageSegment(image=picture(2)), ImageSegment(image=picture(3))),
             {"images": ["source", "target"]}),
    Document("edit.2", (TextSegment("x"), ImageSegment(image=picture(4)), ImageSegment(image=picture(5))),
             {"images": ["target", "source"]}),
    Document("many", tuple(ImageSegment(image=picture(number)) for number in range(3))),
    Document("interleaved", (TextSegment(" a "), ImageSegment(image=picture(6)), TextSegment("b"), TextSegment("c\n"))),
    Document("text only", (TextSegment("words"),), {"caption": "another"}),
    Document("image only", (ImageSegment(image=picture(7)),), {"caption": "not its text"}),
    Document("codes", (TextSegment("coded"), ImageSegment(codes=np.arange(6).reshape(2, 3)))),
    Document("Ünïcödé … with spaces & 'signs'", (TextSegment("x"),)),
    Document("k" * 900, (TextSegment("x"),)),
]  # fmt: skip


@pytest.mark.parametrize("format", ["webdataset", "jsonl"])
def test_round_trip(format: str, tmp_path: Path) -> None:
    counted: list[None] = []
    assert write_documents(DOCUMENTS, tmp_path / "out", format, shard_size=4, advance=lambda: counted.append(None)) == 11
    back = list(read_documents(tmp_path / "out"))
    assert [content(document) for document in back] == [content(document) for document in DOCUMENTS]
    assert len(counted) == 11
    verify(tmp_path / "out", kind="documents")


@pytest.mark.parametrize("format", ["webdataset", "jsonl"])
def test_same_documents_same_bytes(format: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_documents(DOCUMENTS, tmp_path / name, format)
    assert bytes_below(tmp_path / "one") == bytes_below(tmp_path / "two")


def test_shards_are_ordinary_webdataset(tmp_path: Path) -> None:
    write_documents(DOCUMENTS[:3], tmp_path / "out", shard_size=2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "000000.tar", "000000.tar.json", "000001.tar", "000001.tar.json", "manifest.json",
    ]  # fmt: skip
    with tarfile.open(tmp_path / "out" / "000000.tar") as archive:
        infos = archive.getmembers()
        assert [info.name for info in infos][:3] == ["plain.png", "plain.txt", "plain.json"]
        assert {(info.mtime, info.uid, info.gid, info.uname, info.mode) for info in infos} == {(0, 0, 0, "", 0o644)}
        assert json.loads(archive.extractfile("plain.json").read()) == {"n": 1, "nested": {"a": [1, None, "ü"]}}  # type: ignore[union-attr]
    sidecar = json.loads((tmp_path / "out" / "000001.tar.json").read_text())
    assert (sidecar["samples"], sidecar["members"]) == (1, 4)


def test_encoded_bytes_and_files_are_copied_not_encoded_again(tmp_path: Path, png: Png) -> None:
    picture(0).save(tmp_path / "photo.jpg", quality=80)
    jpeg = (tmp_path / "photo.jpg").read_bytes()
    documents = [
        Document("a", (TextSegment("x"), ImageSegment(path=tmp_path / "photo.jpg"))),
        Document("b", (TextSegment("y"), ImageSegment(encoded=png(1)))),
    ]
    for format in ("webdataset", "jsonl"):
        write_documents(documents, tmp_path / format, format)
    back = list(read_documents(tmp_path / "webdataset", options=ReadOptions(decode=False)))
    assert [document.images[0].encoded for document in back] == [jpeg, png(1)]
    assert (tmp_path / "jsonl" / "images" / "a.1.jpg").read_bytes() == jpeg


def test_a_changed_picture_is_written_as_it_is_now(tmp_path: Path, png: Png) -> None:
    (tmp_path / "old.png").write_bytes(png(0))
    segment = ImageSegment(image=picture(3), path=tmp_path / "old.png")
    write_documents([Document("a", (segment,))], tmp_path / "out")
    (back,) = read_documents(tmp_path / "out")
    assert back.images[0].load().tobytes() == picture(3).tobytes()


def test_failure_leaves_nothing_and_keeps_the_older_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_documents(DOCUMENTS[:2], out)
    before = bytes_below(out)
    missing = Document("c", (ImageSegment(path=tmp_path / "none.png"),))
    with pytest.raises(ImageError, match="no picture at"):
        write_documents([DOCUMENTS[0], missing], out)
    with pytest.raises(InputError, match="two documents have the id 'plain'"):
        write_documents([DOCUMENTS[0], DOCUMENTS[0]], out)
    with pytest.raises(InputError, match="is no JSON"):
        write_documents([Document("a", (TextSegment("x"),), {"set": {1}})], out)
    with pytest.raises(InputError, match="has the key 'cm3'"):
        write_documents([Document("a", (TextSegment("x"),), {"cm3": 1})], out)
    with pytest.raises(InputError, match="shard size is 0"):
        write_documents(DOCUMENTS, out, shard_size=0)
    with pytest.raises(UsageError, match="unknown writer 'jsonlines'"):
        write_documents(DOCUMENTS, out, "jsonlines")
    assert bytes_below(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    write_documents(DOCUMENTS[2:3], out)
    assert [document.id for document in read_documents(out)] == ["edit/1"]


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for out in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(InputError, match="holds other things"):
            write_documents(DOCUMENTS[:1], out)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with writing(tmp_path / "model", kind="model") as folder:
        (folder / "weights").write_text("0.1")
    with pytest.raises(InputError, match="holds other things"):
        write_documents(DOCUMENTS[:1], tmp_path / "model")
    (tmp_path / "empty").mkdir()
    assert write_documents(DOCUMENTS[:1], tmp_path / "empty") == 1


def test_file_keys_are_safe_and_distinct() -> None:
    ids = ["a", "a.b", "a b", "a_b", "a/b", "../a", "ä", "k" * 900, "k" * 901, "A"]
    keys = [file_key(id) for id in ids]
    assert len(set(keys)) == len(ids)
    assert all(
        set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") and len(key) < 100 for key in keys
    )
    assert keys[0] == "a"


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
segments = st.one_of(
    texts.map(TextSegment),
    st.integers(0, 3).map(lambda number: ImageSegment(image=picture(number))),
    st.lists(st.integers(0, 9), min_size=1, max_size=3).map(lambda row: ImageSegment(codes=np.array([row]))),
)
metas = st.dictionaries(
    st.sampled_from(["a", "images", "text", "caption", "id", "segments"]),
    st.one_of(st.integers(), texts, st.lists(texts, max_size=2)),
)


@pytest.mark.parametrize("format", ["webdataset", "jsonl"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(drawn=st.lists(st.tuples(st.lists(segments, min_size=1, max_size=4), metas), min_size=1, max_size=3))
@example(drawn=[([ImageSegment(image=picture(0)), ImageSegment(image=picture(0))], {"images": 0})])
def test_any_document_round_trips(tmp_path_factory: pytest.TempPathFactory, format: str, drawn: list) -> None:
    documents = [Document(f"d{number}", tuple(parts), meta) for number, (parts, meta) in enumerate(drawn)]
    out = tmp_path_factory.mktemp("drawn") / "out"
    write_documents(documents, out, format, shard_size=2)
    assert [content(document) for document in read_documents(out)] == [content(document) for document in documents]
