"""Pictures with an index table, in a folder and in a tar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cm3.core.errors import InputError
from cm3.documents import Document, ReadOptions, ReadReport, read_documents

Png = Callable[[int], bytes]
Tar = Callable[..., Path]


def read(source: Path, **options: object) -> tuple[list[Document], ReadReport]:
    report = ReadReport()
    return list(read_documents(source, None, report, ReadOptions(**options))), report  # type: ignore[arg-type]


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def pictures(png: Png) -> dict[str, bytes]:
    return {f"set/png/72/{name}.png": png(number) for number, name in enumerate("abc")}


@pytest.mark.parametrize("packed", [True, False])
def test_tsv_that_names_the_end_of_paths(packed: bool, tmp_path: Path, tar: Tar, png: Png) -> None:
    table = b'file\tcode\tshort_name\tlong_names\nb.png\t62\t"bee" or B\tBEE\na.png\t61\t\tLETTER A\r\n72/c.png\t\tsea\t\n'
    files = {"set/README.md": b"x", "set/names.tsv": table} | pictures(png)
    source = tar(files) if packed else put(tmp_path / "data", files)
    documents, report = read(source)
    assert [(document.id, document.text) for document in documents] == [("b", '"bee" or B'), ("a", "LETTER A"), ("72/c", "sea")]
    assert [dict(document.meta) for document in documents] == [{"code": "62"}, {"code": "61"}, {}]
    assert documents[0].images[0].load().size == (12, 10)
    assert (report.seen, report.ok) == (3, 3)


def test_csv_with_quotes_and_line_breaks(tmp_path: Path, png: Png) -> None:
    table = '\ufeffImage,Caption,Extra\r\na.png,"two\r\nlines, and ""quotes""",1\r\n\r\nb.png,plain\r\n'.encode()
    put(tmp_path, {"index.csv": table, "a.png": png(0), "b.png": png(1)})
    for source in (tmp_path, tmp_path / "index.csv"):
        documents, _ = read(source)
        assert [document.text for document in documents] == ['two\r\nlines, and "quotes"', "plain"]
        assert dict(documents[0].meta) == {"Extra": "1"}


def test_metadata_jsonl_of_imagefolder(tmp_path: Path, png: Png) -> None:
    lines = b'{"file_name": "a.png", "text": "ay", "tags": ["x"]}\n{"file_name": "sub/b.png", "text": "bee"}\n{bad\n[]\n'
    documents, report = read(put(tmp_path, {"metadata.jsonl": lines, "a.png": png(0), "sub/b.png": png(1)}))
    assert [(document.id, document.text) for document in documents] == [("a", "ay"), ("sub/b", "bee")]
    assert dict(documents[0].meta) == {"tags": ["x"]}
    assert report.rejected == {"bad_json": 1, "bad_record": 1}


def test_which_picture_a_name_means(tmp_path: Path, png: Png) -> None:
    rows = [
        "x/a.png,deep and top",
        "b.png,two as deep",
        "c.png,beside the table",
        "../out.png,upwards",
        "none.png,no",
        "d.png,x",
    ]
    table = "\n".join(["path,text", *rows]).encode()
    root = put(
        tmp_path / "data",
        {
            "index.csv": table,
            "set/x/a.png": png(0),
            "set/old/x/a.png": png(1),
            "m/b.png": png(2),
            "n/b.png": png(3),
            "c.png": png(4),
            "m/c.png": png(5),
            "../out.png": png(6),
            "m/bd.png": png(7),
        },
    )
    documents, report = read(root, decode=False)
    found = {document.text: document.images[0].path for document in documents}
    assert found == {
        "deep and top": root / "set/x/a.png",
        "beside the table": root / "c.png",
        "upwards": root / "../out.png",
    }
    assert report.rejected == {"ambiguous_image": 1, "missing_image": 2}


def test_several_texts_for_one_picture(tmp_path: Path, png: Png) -> None:
    table = b"image,caption\na.png,one\na.png,two\nb.png,three\na.png,four\n"
    documents, _ = read(put(tmp_path, {"captions.csv": table, "a.png": png(0), "b.png": png(1)}))
    assert [document.id for document in documents] == ["a", "a#2", "b", "a#3"]


def test_bad_rows_are_counted(tmp_path: Path, png: Png) -> None:
    rows = [
        b"a.png,fine",
        b"a.png,too,many",
        b",no name",
        b"a.png,",
        b"a.png,caf\xe9",
        b'a.png,"open" quote"',
        b"a.png",
        b"\x00,x",
    ]
    documents, report = read(put(tmp_path, {"index.csv": b"file,text\n" + b"\n".join(rows), "a.png": png(0)}))
    assert [document.text for document in documents] == ["fine"]
    assert report.rejected == {"bad_record": 2, "missing_image": 2, "empty_text": 2, "text_not_utf8": 1}
    assert report.seen == 8


def test_an_open_quote_does_not_swallow_rows_silently(tmp_path: Path, png: Png) -> None:
    documents, report = read(put(tmp_path, {"index.csv": b'file,text\na.png,ok\na.png,"open\na.png,lost\n', "a.png": png(0)}))
    assert len(documents) == 1
    assert report.rejected == {"bad_record": 1}


def test_columns_by_option(tmp_path: Path, png: Png) -> None:
    put(tmp_path, {"a.tsv": b"file\ttext\tpic\tgerman\nx.png\twrong\ta.png\trichtig\n", "a.png": png(0)})
    (document,), _ = read(tmp_path, image_column="pic", text_column="german")
    assert (document.text, dict(document.meta)) == ("richtig", {"file": "x.png", "text": "wrong"})
    with pytest.raises(InputError, match="no column 'french'; it has file, text, pic, german"):
        read(tmp_path, text_column="french")


def test_which_table(tmp_path: Path, png: Png) -> None:
    table = b"file,text\na.png,%s\n"
    put(tmp_path, {"one.csv": table % b"one", "two.csv": table % b"two", "deep/index.csv": table % b"deep", "a.png": png(0)})
    put(tmp_path, {"numbers.csv": b"x,y\n1,2\n"})
    with pytest.raises(InputError, match=r"several index tables: one\.csv, two\.csv"):
        read(tmp_path)
    assert read(tmp_path, table="two.csv")[0][0].text == "two"
    put(tmp_path, {"metadata.csv": table % b"meta"})
    assert read(tmp_path)[0][0].text == "meta"
    with pytest.raises(InputError, match=r"holds no index table: expected three\.csv"):
        read(tmp_path, table="three.csv")


def test_table_without_text_says_what_it_has(tmp_path: Path, png: Png) -> None:
    put(tmp_path, {"index.csv": b"file,width\na.png,12\n", "a.png": png(0)})
    with pytest.raises(InputError, match="no column that looks like text; name one of file, width"):
        read(tmp_path)


def test_cut_tar(tar: Tar, png: Png) -> None:
    path = tar({"index.csv": b"file,text\na.png,x\nz.png,y\n"} | {f"{name}.png": png(0) for name in "abcz"})
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match="not whole"):
        read(path)
    documents, report = read(path, keep_truncated=True)
    assert [document.id for document in documents] == ["a"]
    assert report.rejected == {"missing_image": 1, "truncated_shard": 1}
