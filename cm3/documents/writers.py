"""Writing documents in the public formats that the readers read: WebDataset shards, or JSONL with picture files.

The result is a folder written whole or not at all (`cm3.core.artefact`), and its bytes depend on the documents alone:
tar headers carry no time, user or host. Decoded pictures become PNG; encoded bytes and files are copied as they are; codes
stay codes. What is written reads back as the same documents (ids, segments, order, meta).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cm3.core.artefact import MANIFEST, read_manifest, write_json, writing
from cm3.core.errors import InputError
from cm3.core.registry import Registry
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.documents.images import check_header, image_format
from cm3.documents.readers.jsonl import DOCUMENTS_FILE
from cm3.documents.readers.webdataset import OWN_KEY
from cm3.documents.reasons import RecordError, RejectReason
from cm3.documents.records import TEXT_KEYS, segment_to_json
from cm3.documents.tar_members import sidecar_json, sidecar_path
from cm3.documents.texts import check_key

WRITERS = Registry(
    "writer",
    {
        "webdataset": "cm3.documents.writers:write_webdataset",
        "jsonl": "cm3.documents.writers:write_jsonl",
    },
)

KIND = "documents"
IMAGES_FOLDER = "images"

_SUFFIXES = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
_SAFE_KEY = re.compile(r"[A-Za-z0-9_-]{1,100}")
_SAFE_PART = re.compile(r"[A-Za-z0-9_-]{1,40}")


def write_documents(
    documents: Iterable[Document],
    out: Path | str,
    format: str = "webdataset",
    shard_size: int = 1000,
    advance: Callable[[], object] | None = None,
) -> int:
    """Write `documents` into the folder `out` and return how many they were; a folder written before is replaced whole.

    format: a name of `WRITERS`. shard_size: documents per tar (webdataset). advance: called after each document
    (`bar.advance` of `cm3.core.progress`).

    Raises `InputError` for an id that occurs twice or can't be a key, for a picture that can't be decoded, and when `out`
    holds something that was not written here; `StorageError` when the disk is full.
    """
    out = Path(out)
    write = WRITERS.get(format)
    _check_replaceable(out)
    with writing(out, kind=KIND, provenance={"format": format}) as folder:
        return write(_checked(documents, format, advance), folder, shard_size)


def write_webdataset(documents: Iterator[Document], folder: Path, shard_size: int) -> int:
    """Tars `000000.tar`, `000001.tar` … with `NAME.tar.json` (count, SHA-256) beside each."""
    if shard_size < 1:
        raise InputError(f"the shard size is {shard_size}, expected at least one document per tar")
    total = 0
    for number in itertools.count():
        batch = itertools.islice(documents, shard_size)
        if (first := next(batch, None)) is None:
            return total
        path = folder / shard_name(number)
        num_samples = num_members = 0
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            for document in itertools.chain([first], batch):
                num_members += _add_sample(archive, document)
                num_samples += 1
        write_json(sidecar_path(path), sidecar_json(path, num_samples, num_members))
        total += num_samples
    return total


def write_jsonl(documents: Iterator[Document], folder: Path, shard_size: int) -> int:
    """`documents.jsonl` and the pictures under `images/`; `shard_size` does not apply."""
    (folder / IMAGES_FOLDER).mkdir()
    total = 0
    with open(folder / DOCUMENTS_FILE, "w", encoding="utf-8") as lines:
        for document in documents:
            key = file_key(document.id)
            segments = []
            for number, segment in enumerate(document.segments):
                path = None
                if isinstance(segment, ImageSegment) and (encoded := encoded_image(segment)) is not None:
                    data, suffix = encoded
                    path = f"{IMAGES_FOLDER}/{key}.{number}.{suffix}"
                    (folder / path).write_bytes(data)
                segments.append(segment_to_json(segment, path))
            lines.write(_json({"id": document.id, "segments": segments, "meta": dict(document.meta)}) + "\n")
            total += 1
    return total


def shard_name(number: int) -> str:
    """The file name of tar `number`, counted from 0; names sort as numbers do, up to a million tars."""
    return f"{number:06d}.tar"


def encoded_image(segment: ImageSegment) -> tuple[bytes, str] | None:
    """The bytes of the picture that `segment.load()` would give, and their file suffix; None when it holds only codes.

    Raises `ImageError`.
    """
    if segment.image is None:
        source = segment.path if segment.encoded is None else segment.encoded
        if source is None:
            return None
        check_header(source)
        data = source if isinstance(source, bytes) else source.read_bytes()
        return data, _SUFFIXES[str(image_format(data))]
    buffer = io.BytesIO()
    segment.load().save(buffer, format="PNG")
    return buffer.getvalue(), "png"


def file_key(id: str) -> str:
    """The key under which the document called `id` is stored: the id itself where it is a plain name, else a safe form."""
    if _SAFE_KEY.fullmatch(id):
        return id
    digest = hashlib.sha256(id.encode("utf-8")).hexdigest()[:16]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", id)[:60] + "-" + digest


def _check_replaceable(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MANIFEST).is_file() or read_manifest(out).kind != KIND:
        raise InputError(f"{out} exists and holds other things than documents; choose a new folder")


def check_document(document: Document, format: str) -> None:
    """Raise `RecordError` (bad_record …) if `format` has no way to say what the id or the meta of `document` says."""
    check_key(document.id)
    if format == "webdataset" and OWN_KEY in document.meta:
        message = f"the meta of document {document.id!r:.90} has the key {OWN_KEY!r}, which the format needs; rename it"
        raise RecordError(RejectReason.BAD_RECORD, message)
    _json(dict(document.meta))


def _checked(documents: Iterable[Document], format: str, advance: Callable[[], object] | None) -> Iterator[Document]:
    seen: set[str] = set()
    for document in documents:
        check_document(document, format)
        if document.id in seen:
            raise InputError(f"two documents have the id {document.id!r}; every id must be its own")
        seen.add(document.id)
        yield document
        if advance is not None:
            advance()


def _add_sample(archive: tarfile.TarFile, document: Document) -> int:
    """Add the members of one sample and return their number."""
    key = file_key(document.id)
    names = _part_names(document)
    members: dict[str, bytes] = {}  # by what follows the key
    segments: list[dict[str, Any]] = []
    parts = iter(names)
    for segment in document.segments:
        path = None
        if isinstance(segment, ImageSegment):
            part = next(parts)
            if (encoded := encoded_image(segment)) is not None:
                path = f"{part}.{encoded[1]}" if part else encoded[1]
                members[path] = encoded[0]
        segments.append(segment_to_json(segment, path))
    if document.text.strip():
        members["txt"] = document.text.strip().encode("utf-8")
    if record := _sample_json(document, key, names, segments):
        members["json"] = _json(record).encode("utf-8")
    for suffix, data in members.items():
        info = tarfile.TarInfo(f"{key}.{suffix}")  # mtime, uid and gid are 0, mode 0644
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return len(members)


def _part_names(document: Document) -> list[str]:
    """A name for every image segment, in order: those in the meta where they fit, none for a single picture, else numbers."""
    count = len(document.images)
    stated = document.meta.get("images")
    if isinstance(stated, list | tuple) and len(stated) == count and _are_part_names(stated):
        return list(stated)
    return [""] if count == 1 else [f"{number:04d}" for number in range(count)]


def _are_part_names(names: Sequence[Any]) -> bool:
    return all(isinstance(name, str) and _SAFE_PART.fullmatch(name) for name in names) and len(set(names)) == len(names)


def _sample_json(document: Document, key: str, names: list[str], segments: list[dict[str, Any]]) -> dict[str, Any]:
    """The meta, plus what the plain rule of the format (text first, then pictures by name) would not give back."""
    own: dict[str, Any] = {}
    if document.id != key:
        own["id"] = document.id
    if not _is_plain(document, names):
        own["segments"] = segments
    return {**document.meta, **({OWN_KEY: own} if own else {})}


def _is_plain(document: Document, names: list[str]) -> bool:
    text_first = not any(isinstance(segment, TextSegment) for segment in document.segments[1:])
    stripped = document.text == document.text.strip() and (document.text or not any(key in document.meta for key in TEXT_KEYS))
    stored = all(segment.has_picture for segment in document.images)
    given = document.meta.get("images")
    named = names in ([], [""]) or (names == sorted(names) and isinstance(given, list | tuple) and names == list(given))
    return bool(text_first and stripped and stored and named)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RecordError(RejectReason.BAD_RECORD, f"the meta of a document is no JSON: {error}") from None
