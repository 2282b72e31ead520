"""WebDataset: tar shards whose members of one basename form a sample, as img2dataset and `webdataset` write them.

    KEY.png|jpg|jpeg|webp|gif|bmp     the picture; several are named parts: KEY.source.png, KEY.target.png
    KEY.txt, KEY.caption              the caption
    KEY.json                          meta; "caption" or "text" in it is the caption when there is no text file

KEY is the member's path up to the first dot of its last part. Segments: the text, then the pictures in order of their part
names, which then stand in `meta["images"]`. Our writer puts `{"id", "segments"}` under "cm3" in the JSON where this rule alone
would not give the document back. Other members (.cls, .npy …) are passed over. Shards are checked to be whole before use.
Format: github.com/webdataset/webdataset, docs "The WebDataset format".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from cm3.core.errors import InputError
from cm3.documents.document import Document, ImageSegment
from cm3.documents.images import IMAGE_SUFFIXES
from cm3.documents.readers.folder import CAPTION_SUFFIXES, caption_segments, parse_meta
from cm3.documents.readers.sources import expand_source
from cm3.documents.reasons import RecordError, RejectReason
from cm3.documents.records import ReadOptions, Record, image_segment, segments_from_json
from cm3.documents.tar_members import TarMember, read_member, tar_index
from cm3.documents.texts import check_key

OWN_KEY = "cm3"


@dataclass
class Sample:
    """The members of one key: pictures by part name ("" for plain KEY.png), and the first text and JSON member."""

    key: str
    images: dict[str, TarMember] = field(default_factory=dict)
    caption: TarMember | None = None
    json: TarMember | None = None
    repeated: str | None = None  # a member that stands twice


def find_records(source: Path | str, options: ReadOptions) -> Iterator[Record]:
    """One record per sample, shard by shard; and one per shard that is cut off, with `options.keep_truncated`."""
    for shard in shards(source):
        index = tar_index(shard, options.keep_truncated)
        with open(shard, "rb") as stream:
            for sample in group_samples(index.members):
                yield Record(str(shard), sample.key, partial(_build, stream, sample, options))
        if index.truncated is not None:
            yield Record(str(shard), "end", partial(_refuse_cut, index.truncated))


def shards(source: Path | str) -> list[Path]:
    """The tars that `source` means: a tar, several, or all in a folder, sorted. Raises `InputError` when there are none."""
    paths = expand_source(source)
    tars = [tar for path in paths for tar in (sorted(path.glob("*.tar")) if path.is_dir() else [path])]
    if not tars:
        raise InputError(f"{source} holds no .tar file; expected WebDataset shards")
    return tars


def group_samples(members: tuple[TarMember, ...]) -> list[Sample]:
    """Group members by key, in the order in which the keys first appear; members of other kinds make no sample."""
    samples: dict[str, Sample] = {}
    for member in members:
        folder, _, basename = member.name.rpartition("/")
        stem, dot, extension = basename.partition(".")
        part, _, suffix = f".{extension}".rpartition(".")
        kind = f".{suffix.lower()}"
        if not dot or not stem or kind not in (*IMAGE_SUFFIXES, *CAPTION_SUFFIXES, ".json"):
            continue
        key = f"{folder}/{stem}" if folder else stem
        _place(samples.setdefault(key, Sample(key)), member, kind, part.removeprefix("."))
    return list(samples.values())


def _place(sample: Sample, member: TarMember, kind: str, part: str) -> None:
    if kind in IMAGE_SUFFIXES:
        taken = part in sample.images
        sample.images.setdefault(part, member)
    elif kind == ".json":
        taken = sample.json is not None
        sample.json = sample.json or member
    else:
        taken = sample.caption is not None
        sample.caption = sample.caption or member
    if taken:
        sample.repeated = member.name


def _build(stream: BinaryIO, sample: Sample, options: ReadOptions) -> Document:
    key = check_key(sample.key)
    if sample.repeated is not None:
        raise RecordError(RejectReason.DUPLICATE_KEY, f"{sample.repeated:.80} is a second member of its kind for this key")
    caption = None if sample.caption is None else read_member(stream, sample.caption, options.max_record_bytes)
    json_data = None if sample.json is None else read_member(stream, sample.json, options.max_record_bytes)
    meta = parse_meta(json_data, options)
    own = meta.pop(OWN_KEY, {})
    if not isinstance(own, Mapping):
        raise RecordError(RejectReason.BAD_RECORD, f"{OWN_KEY!r} in the JSON must be an object")
    key = check_key(own.get("id", key))
    load = partial(_load, stream, sample, options)
    if "segments" in own:
        return Document(key, segments_from_json(own["segments"], load, options), meta)
    text = caption_segments(caption, meta, options)
    names = sorted(sample.images)
    if names not in ([], [""]):
        meta["images"] = names
    return Document(key, (*text, *(load(f"{name}.") for name in names)), meta)


def _load(stream: BinaryIO, sample: Sample, options: ReadOptions, path: str) -> ImageSegment:
    """The picture whose member is called KEY.`path`; only what stands before the suffix counts."""
    name = path.rpartition(".")[0]
    if name not in sample.images:
        raise RecordError(RejectReason.MISSING_IMAGE, f"the sample has no picture called {name!a:.80}")
    return image_segment(read_member(stream, sample.images[name], options.limits.max_bytes), options)


def _refuse_cut(problem: str) -> Document:
    raise RecordError(RejectReason.TRUNCATED_SHARD, f"the shard is not whole: {problem}")
