"""The memory bank: documents, their vectors, an index and the identity of the encoder, in one verified folder.

    CURRENT                        the generation that counts (see `cm3.core.generations`); inside a model folder there is only
    generation-000001/             one, and its files stand in the bank's folder itself:

    bank.json      what it is: format version, count, width, metric, encoder fingerprint, index, recall
    vectors.npy    (N, E) float32, rows of length 1, memory-mapped
    documents.*    see `retrieval.store`        index.faiss   for indexes that are not exact
    encoder/       a copy of the encoder, unless the bank was built to use the sibling `../encoder` (as in a model folder)

Texts and pictures are searched with the encoder the bank was built with and no other: its fingerprint is compared first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from cm3.core.artefact import current, read_json, verify
from cm3.core.devices import require_device
from cm3.core.errors import ArtefactError, InputError, UsageError
from cm3.core.generations import Hold, hold
from cm3.core.runfile import RunConfig, validate
from cm3.documents.document import Document, Neighbor
from retrieval.embedding import embed_parts
from retrieval.encoders import Encoder, load_encoder
from retrieval.encoders.fingerprint import encoder_fingerprint
from retrieval.index import INDEXES, VectorIndex
from retrieval.index.protocol import Hits
from retrieval.store import DocumentStore
from retrieval.vectors import load_vectors

KIND = "memory"
BANK_FILE = "bank.json"
ENCODER_FOLDER = "encoder"


class BankInfo(RunConfig):
    """bank.json.

    `encoder` is the fingerprint of the encoder; `index` the name in `INDEXES` with its parameters; `recall` how much of what an
    exact search finds this index finds (1.0 for an exact one), with a 95 % interval.
    """

    format: Literal[1] = 1
    count: int = Field(ge=1)
    width: int = Field(ge=1)
    metric: Literal["inner_product"] = "inner_product"
    normalized: Literal[True] = True
    encoder: str
    encoder_kind: str
    index: dict[str, str | int | float | bool]
    recall: dict[str, float | int]


class MemoryBank:
    """An open memory bank; fulfils the protocol `Retriever`. Made by `open_bank`.

    It answers from one generation, that of `folder`, as long as it is open, whatever is published meanwhile.
    """

    def __init__(self, place: Hold, info: BankInfo, encoder_places: Sequence[Path], device: str = "cpu") -> None:
        self._hold, self.info, self._encoder_places, self._device = place, info, encoder_places, device
        self.folder = folder = place.folder
        self.store = DocumentStore(folder)
        self.vectors = load_vectors(folder, (info.count, info.width))
        if len(self.store) != info.count:
            raise ArtefactError(f"{folder} holds {len(self.store)} documents but {info.count} vectors; build the memory again")
        self.index: VectorIndex = INDEXES.get(str(info.index["kind"])).load(folder, self.vectors, info.index, device)

    def __len__(self) -> int:
        return self.info.count

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of this bank, loaded when first needed. Raises `ArtefactError` if it is not found or another one."""
        encoder = load_encoder(_find_encoder(self.folder, self._encoder_places, self.info), self._device)
        self.check_encoder(encoder)
        return encoder

    def close(self) -> None:
        """Let the generation be removed once another one is published; the bank must not be used any more."""
        self._hold.release()

    def check_encoder(self, encoder: Encoder) -> None:
        """Raise `ArtefactError` unless `encoder` is the one whose vectors are stored here."""
        self.require_encoder(encoder.fingerprint)

    def require_encoder(self, fingerprint: str) -> None:
        """Raise `ArtefactError` unless the encoder with this fingerprint made the vectors stored here."""
        if fingerprint != self.info.encoder:
            raise ArtefactError(
                f"{self.folder} was built with encoder {self.info.encoder[:12]}, not with {fingerprint[:12]}: "
                "vectors of different encoders do not compare; use that encoder or build the memory again"
            )

    def search(self, text: str | None = None, image: Image.Image | None = None, k: int = 1) -> list[Neighbor]:
        """The `k` documents nearest to a text, a picture, or both (their mean), nearest first; all of them if k exceeds the bank.

        Scores are cosine similarities; equal scores stand in the order of the bank. Raises `InputError` for a query without
        either part or with blank text, `UsageError` for k below 1.
        """
        query = query_vector(self, text, image)
        return self.search_vectors(query, k)[0]

    def search_vectors(self, queries: np.ndarray, k: int) -> list[list[Neighbor]]:
        """`search` for query vectors (B, E) float32 of length 1."""
        scores, rows = self.nearest(queries, k)
        return [self.read(*hits) for hits in zip(scores, rows, strict=True)]

    def read(self, scores: np.ndarray, rows: np.ndarray) -> list[Neighbor]:
        """The documents of one query's scores (k,) and rows (k,); missing ones (row -1) are left out."""
        found = [(int(row), float(score)) for row, score in zip(rows, scores, strict=True) if row >= 0]
        return [Neighbor(self.store[row], score, rank) for rank, (row, score) in enumerate(found)]

    def nearest(self, queries: np.ndarray, k: int) -> Hits:
        """Scores (B, k) and rows (B, k) of the nearest documents, without reading them; see `Hits`.

        Raises `UsageError` for k below 1 or queries of another width, `InputError` for NaN or infinity in a query.
        """
        if k < 1:
            raise UsageError(f"k is {k}, expected at least 1")
        if queries.ndim != 2 or queries.shape[1] != self.info.width:
            raise UsageError(f"queries have shape {queries.shape}, expected (any number, {self.info.width}) for this memory")
        if not np.isfinite(queries).all():
            raise InputError("a query vector holds NaN or infinity; encode the query again")
        return self.index.search(np.asarray(queries, np.float32), min(k, len(self)))

    def document(self, id: str) -> Document:
        """The document called `id`. Raises `InputError` if there is none."""
        if id not in self.store.rows:
            raise InputError(f"{self.folder} holds no document {id!r}")
        return self.store[self.store.rows[id]]

    @property
    def ids(self) -> Sequence[str]:
        """The ids of all documents, in row order."""
        return self.store.ids


def open_bank(path: Path | str, encoder: Path | str | None = None, verified: bool = True, device: str = "cpu") -> MemoryBank:
    """Open the memory bank at `path`.

    encoder: where its encoder lies; by default `path/encoder`, then `path/../encoder`. It is only loaded by a search.
    verified: check every file against its hash first (once, before anything else reads them); False checks names and sizes.
    device: where the encoder runs and, on a GPU, an exact index finds its candidates, in a copy of the vectors.

    Raises `ArtefactError` for a folder that is no memory bank, is damaged, or does not hold what it says, `UsageError` for a
    device that is not there.
    """
    path = Path(path)
    require_device(device)
    places = [Path(encoder)] if encoder is not None else [path.absolute().parent / ENCODER_FOLDER]
    while True:
        place = hold(path)
        try:
            return _open(place, [*([] if encoder is not None else [place.folder / ENCODER_FOLDER]), *places], verified, device)
        except ArtefactError:
            place.release()
            if current(path) == place.folder:  # else a newer one was published, and this one is going
                raise


def _open(place: Hold, encoder_places: Sequence[Path], verified: bool, device: str) -> MemoryBank:
    folder = place.folder
    verify(folder, KIND, hashes=verified)
    try:
        info = validate(BankInfo, read_json(folder / BANK_FILE), str(folder / BANK_FILE))
    except UsageError as error:  # a bank of another format is the artefact's fault, not the user's
        raise ArtefactError(f"{error}; this memory was written by another version, build it again") from None
    return MemoryBank(place, info, encoder_places, device)


def query_vector(bank: MemoryBank, text: str | None, image: Image.Image | None) -> np.ndarray:
    """The vector (1, E) that asks `bank` by a text, a picture, or both. Raises `InputError` for neither, or for blank text."""
    if text is not None:
        _require_words(text)
    if text is None and image is None:
        raise InputError("the query has neither text nor a picture; give at least one of them")
    return embed_parts([text or ""], [[] if image is None else [image]], bank.encoder, ["query"])


def _require_words(text: str) -> None:
    if not text.strip():
        raise InputError("the query text is empty; give some words, or a picture alone")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("the query text is not valid Unicode, as of bytes that are not UTF-8; write it as UTF-8") from None


def _find_encoder(folder: Path, places: Sequence[Path], info: BankInfo) -> Path:
    """The first of `places` that holds the encoder of the bank, or any, to say that it is another one."""
    if len(places) == 1:
        return places[0]
    there = [place for place in places if (place / "config.json").is_file()]
    if not there:
        raise ArtefactError(f"{folder} carries no encoder and none lies beside it; say where encoder {info.encoder[:12]} is")
    if info.encoder_kind == "hashing":
        return there[0]
    return next((place for place in there if encoder_fingerprint(place) == info.encoder), there[0])
