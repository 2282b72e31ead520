"""Token shards: tokenized documents in one folder, read through memory maps, the same bytes for the same documents.

    tokens.npy        (tokens,) uint16, or uint32 for a vocabulary above 65,536
    offsets.npy       (N + 1,) int64, document i is tokens[offsets[i] : offsets[i + 1]]
    spans.npy         (spans, 3) uint32: kind (0 text, 1 image), start, stop;   span_offsets.npy (N + 1,) int64
    ids.npy           (bytes,) uint8, the document ids as UTF-8;                id_offsets.npy (N + 1,) int64
    grid.npy          (tokens,) uint32, only when grid positions do not follow from the tokens (moved spans)
    weights.npy       (tokens,) uint8 indices into weight_values.npy (float32), only when some loss weight is not 1
    manifest.json     hashes, the vocabulary the ids belong to, and the fingerprint of the document tokenizer that made them

Documents are appended as they come, so memory does not grow with their number. Format: NumPy's .npy, no pickle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cm3.core.arrays import read_array
from cm3.core.artefact import read_manifest, verify, writing
from cm3.core.errors import ArtefactError, InputError
from cm3.tokens import DocumentTokenizer, Span, SpanKind, TokenizedDocument, Vocab, grid_positions_of

KIND = "token_shards"
_SPAN_KINDS: tuple[SpanKind, ...] = ("text", "image")
_MAX_WEIGHT_VALUES = 256
_TOKENIZER = "document_tokenizer"  # in the provenance: `DocumentTokenizer.fingerprint`


def write_shards(
    documents: Iterable[TokenizedDocument],
    out: Path,
    made_with: DocumentTokenizer | Vocab,
    provenance: Mapping[str, Any] | None = None,
) -> int:
    """Write `documents` as the artefact folder `out`; returns how many there were.

    made_with: the tokenizer that made the ids, so that reading can compare it, or the vocabulary alone for ids of another
    origin; `provenance` is kept in the manifest beside it. Raises `InputError` when there is no document, or more
    than 256 different loss weights; `StorageError` when the disk is full.
    """
    vocab = _vocab_of(made_with)
    recorded: dict[str, Any] = {"vocab": vocab.to_json(), **(provenance or {})}
    if isinstance(made_with, DocumentTokenizer):
        recorded[_TOKENIZER] = made_with.fingerprint
    with writing(out, KIND, recorded) as folder:
        with _ShardWriter(folder, vocab) as writer:
            for document in documents:
                writer.add(document)
        if writer.count == 0:
            raise InputError(f"there is no document to write to {out}; check what was read")
    return writer.count


class TokenShards:
    """Documents written by `write_shards`, by index; a `Source` for the loader.

    made_with: when given, it must be the tokenizer or the vocabulary that the shards were written with; of shards that name
    no tokenizer only the vocabulary is compared. `hashes=False` skips reading every byte at opening (size and presence
    are still checked). Raises `ArtefactError` for a damaged folder, another vocabulary or another tokenizer.
    """

    def __init__(self, path: Path, made_with: DocumentTokenizer | Vocab | None = None, hashes: bool = True) -> None:
        self.path = Path(path)
        verify(self.path, KIND, hashes)
        self.provenance = read_manifest(self.path).provenance
        self.vocab = Vocab.from_json(self.provenance["vocab"])
        if made_with is not None:
            self._require(made_with)
        self._tokens, self._offsets = self._open("tokens"), self._open("offsets")
        self._spans, self._span_offsets = self._open("spans"), self._open("span_offsets")
        self._ids, self._id_offsets = self._open("ids"), self._open("id_offsets")
        self._grid = self._open("grid") if self._has("grid") else None
        self._weights = self._open("weights") if self._has("weights") else None
        self._weight_values = np.array(self._open("weight_values")) if self._weights is not None else None

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> TokenizedDocument:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start, stop = self._offsets[index : index + 2].tolist()
        token_ids = self._tokens[start:stop].astype(np.int64)  # (T,)
        grid = grid_positions_of(token_ids, self.vocab) if self._grid is None else self._grid[start:stop].astype(np.int64)
        weights = np.ones(stop - start, np.float32)
        if self._weights is not None and self._weight_values is not None:
            weights = self._weight_values[self._weights[start:stop]]
        return TokenizedDocument(self._id(index), token_ids, grid, self._spans_of(index), weights)

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.diff(self._offsets)

    def lengths(self, epoch: int = 0) -> np.ndarray:
        """(N,) int64, the same in every epoch."""
        return self._lengths

    def document(self, index: int, epoch: int = 0) -> TokenizedDocument:
        """Document `index`, the same in every epoch."""
        return self[index]

    def ids(self) -> Iterator[str]:
        """The ids of all documents, in order."""
        return map(self._id, range(len(self)))

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return len(self._tokens)

    def _require(self, made_with: DocumentTokenizer | Vocab) -> None:
        """Equal id ranges are not enough: a text tokenizer with other merges gives the same ids to other texts."""
        vocab, stated = _vocab_of(made_with), self.provenance.get(_TOKENIZER)
        if vocab != self.vocab:
            raise ArtefactError(
                f"{self.path} was tokenized with another vocabulary: {_difference(self.vocab, vocab)}; tokenize again"
            )
        if isinstance(made_with, DocumentTokenizer) and stated not in (None, made_with.fingerprint):
            raise ArtefactError(
                f"{self.path} was tokenized with the document tokenizer {stated[:12]}, this one is {made_with.fingerprint[:12]} "
                "and gives its ids to other texts; tokenize again with this one (cm3 tokenize ... --tokenizer) or use that one"
            )

    def _id(self, index: int) -> str:
        start, stop = self._id_offsets[index : index + 2].tolist()
        return self._ids[start:stop].tobytes().decode("utf-8")

    def _spans_of(self, index: int) -> tuple[Span, ...]:
        start, stop = self._span_offsets[index : index + 2].tolist()
        return tuple(Span(_SPAN_KINDS[kind], first, last) for kind, first, last in self._spans[start:stop].tolist())

    def _has(self, name: str) -> bool:
        return (self.path / f"{name}.npy").exists()

    def _open(self, name: str) -> np.ndarray:
        # memory maps of no bytes do not exist, hence the plain read of an empty array
        path = self.path / f"{name}.npy"
        try:
            array = read_array(path, "r")
        except ValueError:
            array = read_array(path)
        return array.view(np.ndarray)  # slicing a plain array is several times faster than slicing np.memmap


class _ShardWriter:
    """Appends documents to the arrays of one folder; leaving the block completes them."""

    def __init__(self, folder: Path, vocab: Vocab) -> None:
        self._folder, self._vocab = folder, vocab
        self.count = 0
        self._weight_values = {1.0: 0}
        self._moved = False  # whether some grid positions do not follow from the tokens
        self._files = ExitStack()
        token_type = np.uint16 if vocab.size <= 1 << 16 else np.uint32
        self._tokens, self._offsets = self._grow("tokens", token_type), self._grow("offsets", np.int64)
        self._spans, self._span_offsets = self._grow("spans", np.uint32, 3), self._grow("span_offsets", np.int64)
        self._ids, self._id_offsets = self._grow("ids", np.uint8), self._grow("id_offsets", np.int64)
        self._grid, self._weights = self._grow("grid", np.uint32), self._grow("weights", np.uint8)
        for offsets in (self._offsets, self._span_offsets, self._id_offsets):
            offsets.append(np.zeros(1))

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._files.close()
        if not self._moved:
            (self._folder / "grid.npy").unlink()
        if len(self._weight_values) == 1:
            (self._folder / "weights.npy").unlink()
        else:
            np.save(self._folder / "weight_values.npy", np.array(list(self._weight_values), np.float32))

    def add(self, document: TokenizedDocument) -> None:
        """Append one document."""
        ids = document.token_ids
        if len(ids) == 0 or int(ids.min()) < 0 or int(ids.max()) >= self._vocab.size:
            raise InputError(f"document {document.id!r} holds no ids or ids outside 0..{self._vocab.size - 1}")
        self._tokens.append(ids)
        self._grid.append(document.grid_positions)
        self._weights.append(self._weight_indices(document))
        self._spans.append(np.array([(_SPAN_KINDS.index(kind), *place) for kind, *place in document.spans]).reshape(-1, 3))
        self._ids.append(np.frombuffer(document.id.encode("utf-8"), np.uint8))
        for offsets, values in ((self._offsets, self._tokens), (self._span_offsets, self._spans), (self._id_offsets, self._ids)):
            offsets.append(np.array([values.length]))
        self._moved = self._moved or not np.array_equal(document.grid_positions, grid_positions_of(ids, self._vocab))
        self.count += 1

    def _weight_indices(self, document: TokenizedDocument) -> np.ndarray:
        values, inverse = np.unique(document.loss_weights, return_inverse=True)
        known = [self._weight_values.setdefault(value, len(self._weight_values)) for value in values.tolist()]
        if len(self._weight_values) > _MAX_WEIGHT_VALUES:
            raise InputError(f"more than {_MAX_WEIGHT_VALUES} different loss weights (document {document.id!r}); round them")
        return np.array(known)[inverse]

    def _grow(self, name: str, dtype: type[np.generic], columns: int | None = None) -> _GrowingArray:
        return self._files.enter_context(_GrowingArray(self._folder / f"{name}.npy", dtype, columns))


class _GrowingArray:
    """A .npy file that rows are appended to; its header, which NumPy pads for this, is completed at the end."""

    def __init__(self, path: Path, dtype: type[np.generic], columns: int | None) -> None:
        self._dtype, self._columns, self.length = np.dtype(dtype), columns, 0
        self._stream = open(path, "wb")  # noqa: SIM115  (closed by __exit__)
        self._write_header()

    def __enter__(self) -> _GrowingArray:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._stream:
            self._stream.seek(0)
            self._write_header()

    def append(self, rows: np.ndarray) -> None:
        """Add rows (n,) or (n, columns)."""
        self._stream.write(np.ascontiguousarray(rows, self._dtype).data)
        self.length += len(rows)

    def _write_header(self) -> None:
        shape = (self.length,) if self._columns is None else (self.length, self._columns)
        description = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._stream, description)


def _vocab_of(made_with: DocumentTokenizer | Vocab) -> Vocab:
    return made_with if isinstance(made_with, Vocab) else made_with.vocab


def _difference(ours: Vocab, theirs: Vocab) -> str:
    mine, other = ours.to_json(), theirs.to_json()
    name = next(name for name in mine if mine[name] != other[name])
    return f"{name} is {mine[name]} there and {other[name]} here"
