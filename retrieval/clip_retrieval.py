"""The folder layout of clip-retrieval, read and written: embeddings somebody else computed, and ours for other tools.

    img_emb/img_emb_0.npy      (n, E) float16 or float32, of the pictures; zeros where a row has none
    text_emb/text_emb_0.npy    the same of the texts; one of the two folders may be missing
    metadata/metadata_0.parquet    n rows, in the same order: image_path, caption, and whatever else there is

(github.com/rom1504/clip-retrieval, `clip inference`). The layout does not say which encoder made the vectors: reading takes one
and encodes a few rows again: vectors of another encoder are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cm3.core.arrays import read_array
from cm3.core.artefact import storage_errors, writing
from cm3.core.errors import ArtefactError, InputError, UsageError
from cm3.core.progress import progress
from cm3.documents.document import Document, ImageSegment, TextSegment
from retrieval.bank import MemoryBank
from retrieval.embedding import embed_parts, unit_rows
from retrieval.encoders import Encoder
from retrieval.store import pictures_of

KIND = "clip_retrieval"
_ROWS_PER_FILE = 65_536
_BATCH = 256
_PROBES = 16
_LEAST_AGREEMENT = 0.99  # cosine of a stored vector with that of the right encoder; float16 and other resizing cost some
_PARTS = ("img", "text")
_NUMBER = re.compile(r"_(\d+)\.\w+$")
_ID_COLUMNS = ("id", "key", "image_path")


@dataclass(frozen=True)
class _Partition:
    """Files of one number: vectors by part ("img", "text"), memory-mapped, and the rows of the table."""

    vectors: Mapping[str, np.ndarray]
    rows: Sequence[Mapping[str, Any]]
    name: str


def read_embedded(
    folder: Path | str, encoder: Encoder, pictures: Path | None = None
) -> Iterator[tuple[list[Document], np.ndarray]]:
    """Batches of documents and their unit vectors (n, E) float32: the mean of the parts, as `embed_documents` makes it.

    pictures: where relative `image_path`s start (by default `folder`); a picture that is not there is left out.
    Raises `InputError` for files that are missing, do not fit each other or hold NaN, `ArtefactError` for another encoder.
    """
    folder = Path(folder)
    seen: dict[str, int] = {}
    for partition in _partitions(folder):
        _require_width(partition, encoder)
        documents = [_document(row, seen, pictures or folder) for row in partition.rows]
        _require_encoder(partition, documents, encoder)
        for start in range(0, len(documents), _BATCH):
            chosen = slice(start, start + _BATCH)
            yield documents[chosen], _mean(partition, chosen)


def count_embedded(folder: Path) -> int:
    """How many rows the tables of this layout have. Raises `InputError` for a table that is missing or cannot be read."""
    count = 0
    for table in _tables(folder):
        with _readable(table):
            count += _parquet().read_metadata(table).num_rows
    return count


def write_clip_retrieval(bank: MemoryBank, out: Path | str) -> Path:
    """Write the documents of `bank` in this layout, pictures as PNG files beside it; texts and pictures are encoded again.

    (A bank holds the mean of the two vectors of a document, this layout both.) Raises what `writing` and the encoder raise.
    """
    with writing(out, KIND, {"documents": len(bank), "encoder": bank.info.encoder}) as folder:
        for name in (*(f"{part}_emb" for part in _PARTS), "metadata", "images"):
            (folder / name).mkdir()
        with progress(len(bank), "export", unit="document") as bar:
            for number, start in enumerate(range(0, len(bank), _ROWS_PER_FILE)):
                _write_partition(bank, range(start, min(start + _ROWS_PER_FILE, len(bank))), number, folder)
                bar.advance(min(_ROWS_PER_FILE, len(bank) - start))
    return Path(out)


def _partitions(folder: Path) -> Iterator[_Partition]:
    for table in _tables(folder):
        suffix = table.stem.removeprefix("metadata")
        files = {part: folder / f"{part}_emb" / f"{part}_emb{suffix}.npy" for part in _PARTS}
        rows = _rows(table)
        vectors = {part: _load(file, len(rows)) for part, file in files.items() if file.is_file()}
        if not vectors:
            raise InputError(f"{folder} has neither {files['img']} nor {files['text']} beside {table.name}; restore one of them")
        yield _Partition(vectors, rows, table.name)


def _load(file: Path, count: int) -> np.ndarray:
    try:
        vectors = read_array(file, "r")
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as embeddings: {error}; restore it from a copy") from None
    if vectors.ndim != 2 or len(vectors) != count or not np.issubdtype(vectors.dtype, np.floating):
        raise InputError(
            f"{file} holds {vectors.dtype} of shape {vectors.shape}, expected floats ({count}, E), as many as its table has rows"
        )
    return vectors


def _tables(folder: Path) -> list[Path]:
    tables = sorted((folder / "metadata").glob("metadata_*.parquet"), key=_number)
    if not tables:
        raise InputError(f"{folder} has no metadata/metadata_0.parquet; expected the layout that `clip inference` writes")
    return tables


def _rows(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]]
    with _readable(file):
        rows = _parquet().read_table(file).to_pylist()
    return rows


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise InputError(f"{file} cannot be read as a parquet table: {error}; restore it from a copy") from None


def _mean(partition: _Partition, chosen: slice) -> np.ndarray:
    parts = [np.asarray(vectors[chosen], np.float32) for vectors in partition.vectors.values()]
    mean = unit_rows(sum(unit_rows(part) for part in parts))  # type: ignore[arg-type]  # zero rows add nothing
    if len(bad := np.flatnonzero(~np.isfinite(mean).all(axis=1) | ~mean.any(axis=1))):
        raise InputError(
            f"row {chosen.start + int(bad[0])} of {partition.name} has a vector of zeros, NaN or infinity; remove it"
        )
    return mean


def _document(row: Mapping[str, Any], seen: dict[str, int], pictures: Path) -> Document:
    named = next((str(row[name]) for name in _ID_COLUMNS if row.get(name) is not None), "row")
    seen[named] = seen.get(named, 0) + 1
    id = named if seen[named] == 1 and named != "row" else f"{named}#{seen[named]}"
    caption, place = row.get("caption"), row.get("image_path")
    text = (TextSegment(str(caption)),) if caption else ()
    picture = (ImageSegment(path=pictures / str(place)),) if place and (pictures / str(place)).is_file() else ()
    meta = _object(row.get("meta"))
    known = {"id", "caption", "image_path", "meta"}
    others = {name: value for name, value in row.items() if name not in known and isinstance(value, str | int | float | bool)}
    return Document(id, (*text, *picture), {**others, **meta})


def _object(value: Any) -> dict[str, Any]:
    """The JSON object in a column "meta" as this package writes it; anything else there is kept as it is."""
    if not isinstance(value, str):
        return {}
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"meta": value}


def _require_width(partition: _Partition, encoder: Encoder) -> None:
    for part, vectors in partition.vectors.items():
        if vectors.shape[1] != encoder.width:
            raise ArtefactError(
                f"the {part} embeddings of {partition.name} are {vectors.shape[1]} wide, those of the encoder {encoder.width}: "
                "they were made by another one; give that"
            )


def _require_encoder(partition: _Partition, documents: Sequence[Document], encoder: Encoder) -> None:
    """Encode a few rows of every part again and compare."""
    compared = 0
    for part, stored in partition.vectors.items():
        rows = [row for row, item in enumerate(documents) if (item.text.strip() if part == "text" else item.images)][:_PROBES]
        if not rows:
            continue
        if part == "text":
            again = encoder.encode_texts([documents[row].text for row in rows])
        else:
            again = encoder.encode_images([documents[row].images[0].load() for row in rows])
        compared += len(rows)
        cosines = (again * unit_rows(np.asarray(stored[rows], np.float32))).sum(axis=1)
        agreement = float(np.median(cosines[np.isfinite(cosines)])) if np.isfinite(cosines).any() else 1.0  # NaN is named later
        if agreement < _LEAST_AGREEMENT:
            raise ArtefactError(
                f"the {part} embeddings of {partition.name} agree with those of the encoder only to {agreement:.2f} (cosine), "
                f"expected {_LEAST_AGREEMENT}: they were made by another one; give that"
            )
    if not compared:
        raise UsageError(
            f"nothing in {partition.name} shows which encoder made its vectors: it has no captions with text embeddings and no "
            "pictures here; say where the pictures are"
        )


def _write_partition(bank: MemoryBank, rows: range, number: int, folder: Path) -> None:
    table, vectors = [], {part: list[np.ndarray]() for part in _PARTS}
    for start in range(rows.start, rows.stop, _BATCH):
        documents = [bank.store[row] for row in range(start, min(start + _BATCH, rows.stop))]
        vectors["text"].append(_encoded(bank, [document.text for document in documents], [[] for _ in documents]))
        loaded = [pictures_of(document) for document in documents]
        vectors["img"].append(_encoded(bank, [""] * len(documents), loaded))
        for row, document, group in zip(range(start, rows.stop), documents, loaded, strict=False):
            place = f"images/{row:09d}.png" if group else None
            if place is not None:
                with storage_errors(folder):
                    group[0].save(folder / place, "PNG")
            meta = json.dumps(dict(document.meta), ensure_ascii=False)
            table.append({"id": document.id, "image_path": place, "caption": document.text, "meta": meta})
    for part, blocks in vectors.items():
        np.save(folder / f"{part}_emb" / f"{part}_emb_{number}.npy", np.concatenate(blocks).astype(np.float16))
    _write_table(table, folder / "metadata" / f"metadata_{number}.parquet")


def _encoded(bank: MemoryBank, texts: Sequence[str], pictures: Sequence[Sequence[Any]]) -> np.ndarray:
    """Unit vectors (n, E), zeros for items with neither text nor pictures."""
    rows = [row for row, text in enumerate(texts) if text.strip() or pictures[row]]
    vectors = np.zeros((len(texts), bank.info.width), np.float32)
    chosen = [[part[row] for row in rows] for part in (texts, pictures)]
    if rows:
        vectors[rows] = embed_parts(chosen[0], chosen[1], bank.encoder, [str(row) for row in rows])  # type: ignore[arg-type]
    return vectors


def _write_table(rows: list[dict[str, Any]], file: Path) -> None:
    parquet = _parquet()
    import pyarrow

    schema = pyarrow.schema([(name, pyarrow.string()) for name in ("id", "image_path", "caption", "meta")])
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), file)


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UsageError("parquet tables need pyarrow, which is not installed; pip install 'cm3-multimodal[parquet]'") from None
    return pyarrow.parquet


def _number(file: Path) -> int:
    match = _NUMBER.search(file.name)
    return int(match[1]) if match else -1
