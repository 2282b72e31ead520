"""Pictures with an index table: a .csv, .tsv or metadata.jsonl that names a picture and a text per row.

The pictures and the table lie together in a folder or in one tar. The columns are found by name, or given as
`ReadOptions.image_column` and `text_column`; all others become meta. Where several columns look like text, a row's text is
the first that is not empty.

A picture may be named by the end of its path ("emoji_u0023.png" for "png/72/emoji_u0023.png") as long as one file fits best
(under the fewest folders). The id is the name without suffix; when a picture has several rows, the later ids end in "#2",
"#3" … Hugging Face's imagefolder with metadata.csv or metadata.jsonl is one case of this format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from cm3.core.errors import InputError
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.documents.readers.file_set import FileSet, open_file_set
from cm3.documents.readers.sources import expand_source
from cm3.documents.readers.table_rows import choose_columns, header, image_column, is_table_name, read_rows
from cm3.documents.reasons import RecordError, RejectReason
from cm3.documents.records import ReadOptions, Record
from cm3.documents.texts import check_key, check_text

_PREFERRED_STEMS = ("metadata", "index", "captions", "names", "labels")
_MAX_HEADER_BYTES = 64 * 1024
_MAX_TABLE_BYTES = 1024**3


def find_records(source: Path | str, options: ReadOptions) -> Iterator[Record]:
    """One record per row, in the order of the table."""
    for path in expand_source(source):
        is_table = path.is_file() and path.suffix != ".tar"
        with open_file_set(path.parent if is_table else path, options.keep_truncated) as files:
            name = path.name if is_table else find_table(files, options)
            table = _Table(files, name, options)
            yield from table.records()
            if files.truncated is not None:
                yield Record(files.label, "end", partial(_refuse_cut, files.truncated))


def find_table(files: FileSet, options: ReadOptions) -> str:
    """The index table among `files`: the one `options.table` names, else the only (or best named) one nearest to the top.

    Raises `InputError` when there is none, or several that are as good.
    """
    names = tables_in(files) if options.table is None else [name for name in files.names if _ends_in(name, options.table)]
    if not names:
        wanted = options.table or "a .csv, .tsv or metadata.jsonl file with a column that names pictures"
        raise InputError(f"{files.label} holds no index table: expected {wanted}")
    top = min(name.count("/") for name in names)
    nearest = [name for name in names if name.count("/") == top]
    best = next((name for stem in _PREFERRED_STEMS for name in nearest if PurePosixPath(name).stem == stem), None)
    if best is None and len(nearest) > 1:
        raise InputError(f"{files.label} holds several index tables: {', '.join(nearest[:5])}; say which one to take")
    return best or nearest[0]


def tables_in(files: FileSet) -> list[str]:
    """The files that are index tables: called like one, and with a column that names pictures."""
    candidates = [name for name in files.names if is_table_name(name)]
    return [name for name in candidates if image_column(header(name, files.read(name, _MAX_HEADER_BYTES))) is not None]


class _Table:
    """One open table and the files its rows name."""

    def __init__(self, files: FileSet, name: str, options: ReadOptions) -> None:
        self._files, self._name, self._options = files, name, options
        self._data = files.read(name, _MAX_TABLE_BYTES)
        self._columns = choose_columns(name, header(name, self._data[:_MAX_HEADER_BYTES]), options)
        self._uses: Counter[str] = Counter()  # rows met so far, by picture
        self._by_basename: dict[str, list[str]] = {}
        for file in files.names:
            self._by_basename.setdefault(PurePosixPath(file).name, []).append(file)

    def records(self) -> Iterator[Record]:
        """One record per row."""
        for line, row in read_rows(self._name, self._data, self._options):
            yield Record(f"{self._files.label}/{self._name}", f"line {line}", partial(self._build, row))

    def _build(self, row: Mapping[str, Any] | RecordError) -> Document:
        if isinstance(row, RecordError):
            raise row
        name = row.get(self._columns.image)
        if not isinstance(name, str) or not name.strip("/. "):
            raise RecordError(RejectReason.MISSING_IMAGE, f"the row names no picture in column {self._columns.image!r}")
        used = {self._columns.image, *self._columns.text}
        text = self._text(row)
        segment = self._picture(name)
        meta = {key: value for key, value in row.items() if key not in used and value not in ("", None)}
        return Document(self._id(name), (TextSegment(text), segment), meta)

    def _text(self, row: Mapping[str, Any]) -> str:
        values = [row.get(column) for column in self._columns.text]
        text = next((value for value in values if value is not None and value != ""), "")
        return check_text(text, self._options.max_text_bytes).strip()

    def _id(self, name: str) -> str:
        parts = [part for part in PurePosixPath(name).with_suffix("").parts if part not in ("/", "..")]
        key = check_key("/".join(parts))
        self._uses[key] += 1
        return key if self._uses[key] == 1 else f"{key}#{self._uses[key]}"

    def _picture(self, name: str) -> ImageSegment:
        wanted = PurePosixPath(name)
        beside = (PurePosixPath(self._name).parent / wanted).as_posix()
        fitting = [file for file in self._by_basename.get(wanted.name, []) if _ends_in(file, wanted.as_posix())]
        if beside in fitting or not fitting:
            return self._files.image(beside, self._options)  # the exact place; also "../a.png" and absolute names in a folder
        first, *others = sorted(fitting, key=lambda file: (file.count("/"), file))
        if others and others[0].count("/") == first.count("/"):
            message = f"{name!a:.80} fits {first} and {others[0]} equally well; name it with its folder"
            raise RecordError(RejectReason.AMBIGUOUS_IMAGE, message)
        return self._files.image(first, self._options)


def _ends_in(path: str, end: str) -> bool:
    return path == end or path.endswith("/" + end)


def _refuse_cut(problem: str) -> Document:
    raise RecordError(RejectReason.TRUNCATED_SHARD, f"the tar is not whole: {problem}")
