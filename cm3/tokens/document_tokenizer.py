"""`DocumentTokenizer`: Documents to token ids and back, for any interleaving of text and pictures.

Texts go through the text tokenizer and pictures through the image tokenizer, both in batches; a picture that carries
its codes needs no image tokenizer. `decode` is the exact inverse, except that a picture comes back as its codes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cm3.core.artefact import read_json, write_json
from cm3.core.errors import ArtefactError, InputError, UsageError
from cm3.core.protocols import ImageTokenizer
from cm3.documents.document import Document, ImageSegment, Segment, TextSegment
from cm3.tokens.layout import split, split_leniently
from cm3.tokens.text import BPETextTokenizer, require_encodable
from cm3.tokens.tokenized import TokenizedDocument, assemble
from cm3.tokens.vocab import SpanKind, Vocab

if TYPE_CHECKING:
    from PIL.Image import Image

LAYOUT_FILE = "token_layout.json"
CODEBOOK_FILE = "codebook.safetensors"  # beside it, where the code vectors of the image tokenizer go along
IMAGE_BATCH = 64  # pictures per call of the image tokenizer: bounds memory, not the result


class DocumentTokenizer:
    """One vocabulary with the tokenizers that fill it.

    image_tokenizer may be None: then every picture must carry its codes, and decoded pictures are codes only. Raises
    `ArtefactError` when a tokenizer does not fit the vocabulary.
    """

    def __init__(self, vocab: Vocab, text: BPETextTokenizer, image_tokenizer: ImageTokenizer | None = None) -> None:
        if text.first_id != vocab.text_start or text.vocab_size > vocab.text_size:
            raise ArtefactError(
                f"the text tokenizer has ids {text.first_id}..{text.first_id + text.vocab_size - 1}, the vocabulary text ids "
                f"{vocab.text_start}..{vocab.text_stop - 1}; they do not belong together"
            )
        if image_tokenizer is not None:
            given = (image_tokenizer.codebook_size, tuple(image_tokenizer.grid_shape))
            if given != (vocab.codebook_size, vocab.grid_shape):
                raise ArtefactError(
                    f"the image tokenizer has codebook_size={given[0]} and grid_shape={given[1]}, the vocabulary "
                    f"{vocab.codebook_size} and {vocab.grid_shape}; they do not belong together"
                )
        self.vocab, self.text, self.image_tokenizer = vocab, text, image_tokenizer

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the id layout and the text tokenizer: what the ids of this tokenizer mean."""
        return hashlib.sha256((self.vocab.fingerprint + self.text.to_json()).encode()).hexdigest()

    def encode(self, document: Document) -> TokenizedDocument:
        """The tokens of one document. Raises `InputError` for a text or picture that cannot be used."""
        return assemble(self.encode_segments(document.segments), self.vocab, document.id)

    def encode_many(
        self,
        documents: Iterable[Document],
        batch_size: int = 256,
        on_reject: Callable[[Document, InputError], None] | None = None,
    ) -> Iterator[TokenizedDocument]:
        """`encode` of many documents in their order, `batch_size` at a time through both tokenizers.

        A document that cannot be used goes to `on_reject` and is left out; without `on_reject` its error is raised.
        """
        stream = iter(documents)
        while batch := list(islice(stream, batch_size)):
            yield from self._encode_batch(batch, on_reject)

    def encode_segments(self, segments: Sequence[Segment]) -> list[tuple[SpanKind, np.ndarray]]:
        """Each segment as (kind, ids (n,) int64): text ids, or the h · w image ids in raster order. In batches."""
        texts = [segment.text for segment in segments if isinstance(segment, TextSegment)]
        text_ids = iter(self.text.encode_batch(texts))
        image_ids = iter(self._image_ids([segment for segment in segments if isinstance(segment, ImageSegment)]))
        return [
            ("text", np.asarray(next(text_ids), np.int64)) if isinstance(segment, TextSegment) else ("image", next(image_ids))
            for segment in segments
        ]

    def decode(self, token_ids: Sequence[int] | np.ndarray, id: str = "", strict: bool = True, images: bool = False) -> Document:
        """Ids (T,) in the document layout → Document, the inverse of `encode`.

        A picture becomes an ImageSegment with codes (h, w) int64; with `images` it is decoded too (needs the image
        tokenizer). Raises `InputError` for ids that are not a whole document; with `strict=False` what is broken or
        unfinished is left out instead: reading stops at the first `<eos>`, incomplete pictures and stray ids vanish.
        """
        ids = np.asarray(token_ids, np.int64).reshape(-1)
        pieces = split(ids, self.vocab) if strict else split_leniently(ids, self.vocab)
        segments = [self._decode_piece(piece) for piece in pieces]
        return Document(id, tuple(self._with_images(segments) if images else segments))

    def pictures(self, codes: Sequence[np.ndarray]) -> list[Image]:
        """Codes (h, w) each → pictures, in batches. Raises `UsageError` without an image tokenizer."""
        import torch

        if self.image_tokenizer is None:
            raise UsageError("decoding codes to pictures needs an image tokenizer; give one to DocumentTokenizer")
        made: list[Image] = []
        for start in range(0, len(codes), IMAGE_BATCH):
            grids = np.stack(codes[start : start + IMAGE_BATCH]).astype(np.int64)  # (B, h, w)
            made += self.image_tokenizer.postprocess(self.image_tokenizer.decode(torch.from_numpy(grids)))  # (B, 3, Y, X)
        return made

    def save(self, folder: Path) -> None:
        """Write the text tokenizer and the id layout into `folder`; the image tokenizer is an artefact of its own."""
        self.text.save(folder)
        write_json(Path(folder) / LAYOUT_FILE, self.vocab.to_json())

    @classmethod
    def load(cls, folder: Path, image_tokenizer: ImageTokenizer | None = None) -> DocumentTokenizer:
        """Read what `save` wrote. Raises `ArtefactError` when a file is missing, damaged, or does not fit the other."""
        layout = read_json(Path(folder) / LAYOUT_FILE)
        try:
            vocab = Vocab.from_json(layout)
        except (UsageError, TypeError) as error:
            raise ArtefactError(f"{Path(folder) / LAYOUT_FILE} is not a token layout: {error}") from None
        return cls(vocab, BPETextTokenizer.load(folder), image_tokenizer)

    def _encode_batch(
        self, batch: list[Document], on_reject: Callable[[Document, InputError], None] | None
    ) -> Iterator[TokenizedDocument]:
        usable = []
        for document in batch:
            try:
                usable.append((document, [self._prepare(segment) for segment in document.segments]))
            except InputError as error:
                if on_reject is None:
                    raise InputError(f"document {document.id!r}: {error}") from error
                on_reject(document, error)
        ids = iter(self.encode_segments([segment for _, segments in usable for segment in segments]))
        for document, segments in usable:
            yield assemble(list(islice(ids, len(segments))), self.vocab, document.id)

    def _prepare(self, segment: Segment) -> Segment:
        """Meet every error of one segment alone, so that it cannot spoil its batch; a picture file is read here."""
        if isinstance(segment, TextSegment):
            require_encodable(segment.text)
            return segment
        if segment.codes is not None:
            self._require_codes(segment.codes)
            return segment
        return ImageSegment(image=segment.load())

    def _image_ids(self, segments: Sequence[ImageSegment]) -> list[np.ndarray]:
        codes: list[np.ndarray | None] = [None if s.codes is None else self._require_codes(s.codes) for s in segments]
        missing = [index for index, known in enumerate(codes) if known is None]
        for start in range(0, len(missing), IMAGE_BATCH):
            chosen = missing[start : start + IMAGE_BATCH]
            for index, made in zip(chosen, self._encode_images([segments[index] for index in chosen])):
                codes[index] = made
        return [self.vocab.image_ids(np.asarray(grid, np.int64).reshape(-1)) for grid in codes]  # (h·w,) each

    def _encode_images(self, segments: Sequence[ImageSegment]) -> np.ndarray:
        if self.image_tokenizer is None:
            raise UsageError("a picture without codes needs an image tokenizer; give one to DocumentTokenizer")
        pixels = self.image_tokenizer.preprocess([segment.load() for segment in segments])  # (B, 3, Y, X)
        return self.image_tokenizer.encode(pixels).cpu().numpy()  # (B, h, w)

    def _require_codes(self, codes: np.ndarray) -> np.ndarray:
        if tuple(codes.shape) != self.vocab.grid_shape:
            raise InputError(f"picture codes have shape {tuple(codes.shape)}, expected grid_shape={self.vocab.grid_shape}")
        if not np.issubdtype(codes.dtype, np.integer):
            raise InputError(f"picture codes have dtype {codes.dtype}, expected whole numbers")
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.vocab.codebook_size:
            raise InputError(f"picture codes reach {low}..{high}, expected 0..{self.vocab.codebook_size - 1} (codebook_size)")
        return codes

    def _decode_piece(self, ids: np.ndarray) -> Segment:
        if self.vocab.is_image(int(ids[0])):
            return ImageSegment(codes=self.vocab.codes(ids).reshape(self.vocab.grid_shape))  # (h, w)
        return TextSegment(self.text.decode(ids.tolist()))

    def _with_images(self, segments: list[Segment]) -> list[Segment]:
        codes = [segment.codes for segment in segments if isinstance(segment, ImageSegment) and segment.codes is not None]
        pictures = iter(self.pictures(codes))
        return [
            ImageSegment(image=next(pictures), codes=segment.codes) if isinstance(segment, ImageSegment) else segment
            for segment in segments
        ]


def vocab_for(text: BPETextTokenizer, codebook_size: int, grid_shape: tuple[int, int]) -> Vocab:
    """The vocabulary in the default layout around a trained text tokenizer and an image codebook."""
    num_masks = text.first_id - Vocab.mask_start
    return Vocab(text.vocab_size, codebook_size, grid_shape, num_masks)
