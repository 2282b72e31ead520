"""WebDataset shards as other tools write them, and as they break."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cm3.core.errors import BudgetError, InputError
from cm3.documents import DecodeLimits, Document, ReadOptions, ReadReport, RejectReason, read_documents

Png = Callable[[int], bytes]
Tar = Callable[..., Path]


def read(source: Path | str, **options: object) -> tuple[list[Document], ReadReport]:
    report = ReadReport()
    documents = list(read_documents(source, "webdataset", report, ReadOptions(**options)))  # type: ignore[arg-type]
    return documents, report


def test_samples_of_img2dataset(tar: Tar, png: Png) -> None:
    meta = {"caption": "a cat", "url": "http://example.org/1", "key": "000000000", "status": "success"}
    path = tar({"000000000.png": png(0), "000000000.txt": b"a cat\n", "000000000.json": json.dumps(meta).encode()})
    (document,), report = read(path)
    assert (document.id, document.text, document.meta["url"]) == ("000000000", "a cat", "http://example.org/1")
    assert document.images[0].load().size == (12, 10)
    assert (report.seen, report.ok, report.rejected) == (1, 1, {})


def test_order_is_that_of_the_archive_and_members_may_be_apart(tar: Tar, png: Png) -> None:
    path = tar([("b.png", png(1)), ("a.png", png(2)), ("b.txt", b"bee"), ("a.txt", b"ay"), ("a.cls", b"7"), ("c.npy", b"..")])
    documents, report = read(path)
    assert [(document.id, document.text) for document in documents] == [("b", "bee"), ("a", "ay")]
    assert report.seen == 2


def test_named_parts_come_in_order_of_their_names(tar: Tar, png: Png) -> None:
    path = tar({"1.target.png": png(2), "1.source.PNG": png(1), "1.txt": b"make it red", "1.mask.png": png(3)})
    (document,), _ = read(path, decode=False)
    assert document.meta["images"] == ["mask", "source", "target"]
    assert [segment.encoded for segment in document.images] == [png(3), png(1), png(2)]


def test_keys_keep_their_folder_and_end_at_the_first_dot(tar: Tar, png: Png) -> None:
    path = tar({"x.y/1.png": png(0), "x.y/1.txt": b"one", "z/1.png": png(1), "z/1.seg.v2.png": png(2)})
    documents, _ = read(path)
    assert [(document.id, document.meta.get("images")) for document in documents] == [("x.y/1", None), ("z/1", ["", "seg.v2"])]


def test_caption_may_stand_in_the_json(tar: Tar, png: Png) -> None:
    path = tar({"1.png": png(0), "1.json": b'{"caption": " a dog ", "width": 12}', "2.json": b'{"text": "words alone"}'})
    documents, _ = read(path)
    assert [(document.text, dict(document.meta)) for document in documents] == [("a dog", {"width": 12}), ("words alone", {})]


def test_every_bad_sample_is_counted_under_its_reason(tar: Tar, png: Png) -> None:
    path = tar(
        [
            *{
                "good.png": png(0),
                "good.txt": b"fine",
                "cut.png": png(1)[:-40],
                "text.png": b"not a picture",
                "empty.png": png(2),
                "empty.txt": b" \n",
                "latin.png": png(3),
                "latin.txt": b"caf\xe9",
                "json.png": png(4),
                "json.json": b"{",
                "list.png": png(5),
                "list.json": b"[1]",
                "meta.json": b'{"a": 1}',
                "own.json": b'{"cm3": 3, "text": "x"}',
                "lost.json": b'{"cm3": {"segments": [{"type": "image", "path": "png"}]}}',
                "../up.txt": b"x",
                "long" * 300 + ".txt": b"x",
            }.items(),
            ("twice.txt", b"one"),
            ("twice.txt", b"two"),
        ]
    )
    documents, report = read(path)
    assert [document.id for document in documents] == ["good"]
    assert report.rejected == {
        "truncated_image": 1,
        "not_an_image": 1,
        "empty_text": 1,
        "text_not_utf8": 1,
        "bad_json": 1,
        "bad_record": 2,
        "no_content": 1,
        "missing_image": 1,
        "unsafe_key": 1,
        "key_too_long": 1,
        "duplicate_key": 1,
    }
    assert (report.seen, report.ok) == (13, 1)
    assert (report.problems[0].where, report.problems[0].reason) == ("cut", RejectReason.TRUNCATED_IMAGE)
    with pytest.raises(BudgetError, match="12 of 13 records"):
        list(read_documents(path))


def test_a_key_in_two_shards_names_both(tar: Tar) -> None:
    for name in ("a.tar", "b.tar"):
        tar({"7.txt": b"x", f"{name[0]}.txt": b"y"}, name)
    documents, report = read(tar({}, "c.tar").parent)
    assert [document.id for document in documents] == ["7", "a", "b"]
    assert report.rejected == {"duplicate_key": 1}
    assert "a.tar 7" in report.problems[0].message
    assert "b.tar 7" in report.problems[0].message


def test_cut_shard_is_refused_unless_asked_for(tar: Tar) -> None:
    path = tar({f"{number}.txt": b"word" for number in range(10)})
    path.write_bytes(path.read_bytes()[: 7 * 1024 + 100])
    with pytest.raises(InputError, match=r"shard\.tar is not whole"):
        list(read_documents(path))
    documents, report = read(path, keep_truncated=True)
    assert (len(documents), report.rejected, report.seen) == (7, {"truncated_shard": 1}, 8)


def test_shards_by_glob_by_braces_and_by_folder(tar: Tar, tmp_path: Path) -> None:
    for number in range(3):
        tar({f"{number}.txt": b"x"}, f"{number:03d}.tar")
    for source in (tmp_path, f"{tmp_path}/*.tar", f"{tmp_path}/{{000..002}}.tar", f"{tmp_path}/{{000,001,002}}.tar"):
        assert [document.id for document in read(source)[0]] == ["0", "1", "2"]
    with pytest.raises(InputError, match=r"nothing at .*003\.tar"):
        read_documents(f"{tmp_path}/{{000..003}}.tar")


def test_requirements(tar: Tar, png: Png) -> None:
    path = tar({"both.png": png(0), "both.txt": b"x", "bare.png": png(1), "words.txt": b"y"})
    assert len(read(path)[0]) == 3
    assert read(path, require_text=True)[1].rejected == {"missing_text": 1}
    assert read(path, require_image=True)[1].rejected == {"missing_image": 1}


def test_undecoded_reading_keeps_the_bytes_and_checks_headers(tar: Tar, png: Png) -> None:
    path = tar({"a.png": png(0), "b.png": png(1)[:-40], "c.png": b"no"})
    documents, report = read(path, decode=False)
    assert [document.images[0].encoded for document in documents] == [png(0), png(1)[:-40]]
    assert documents[0].images[0].image is None
    assert report.rejected == {"not_an_image": 1}


def test_big_members_are_not_taken_into_memory_whole(tar: Tar, png: Png) -> None:
    path = tar({"a.txt": b"x" * 200_000, "b.json": b'{"text": "' + b"x" * 200_000 + b'"}', "c.png": png(0) + b"x" * 200_000})
    _, report = read(path, max_text_bytes=1000, max_record_bytes=5000, limits=DecodeLimits(max_bytes=1000))
    assert report.rejected == {"text_too_long": 1, "record_too_long": 1, "too_many_bytes": 1}
