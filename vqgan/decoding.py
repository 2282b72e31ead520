"""Data sets of codes back to pictures: `cm3 vqgan decode`, the way back of `vqgan.encoding`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cm3.core.errors import InputError
from cm3.core.progress import progress
from cm3.core.protocols import ImageTokenizer
from cm3.documents.document import Document, ImageSegment, Segment
from cm3.documents.readers import read_documents
from cm3.documents.writers import write_documents


def decode_documents(
    tokenizer: ImageTokenizer, source: Path | str, out: Path | str, format: str = "jsonl", batch_size: int = 32
) -> int:
    """Write the documents of `source` to `out` with pictures (PNG) instead of codes; returns how many they were.

    `format`: a name of `cm3.documents.writers.WRITERS`. Raises `InputError` naming a document whose codes the tokenizer
    doesn't have.
    """
    documents = read_documents(source)
    with progress(0, "decoding", unit="document") as bar:
        decoded = _decoded_documents(tokenizer, documents, batch_size)
        return write_documents(decoded, out, format, advance=bar.advance)


def _decoded_documents(tokenizer: ImageTokenizer, documents: Iterator[Document], batch_size: int) -> Iterator[Document]:
    while batch := list(islice(documents, batch_size)):
        grids = [[segment.codes for segment in document.images if segment.codes is not None] for document in batch]
        for document, codes in zip(batch, grids):
            _check_codes(tokenizer, document.id, codes)
        flat = [torch.as_tensor(grid) for codes in grids for grid in codes]
        decoded = [
            image
            for start in range(0, len(flat), batch_size)
            for image in tokenizer.postprocess(tokenizer.decode(torch.stack(flat[start : start + batch_size])))
        ]
        images = iter(decoded)
        for document in batch:
            yield replace(document, segments=tuple(_drawn(segment, images) for segment in document.segments))


def _drawn(segment: Segment, images: Iterator[Image.Image]) -> Segment:
    """The segment, with the next of `images` in the place of codes."""
    coded = isinstance(segment, ImageSegment) and segment.codes is not None
    return ImageSegment(image=next(images)) if coded else segment


def _check_codes(tokenizer: ImageTokenizer, key: str, grids: Sequence[np.ndarray]) -> None:
    for codes in grids:
        if codes.shape != tokenizer.grid_shape or codes.min() < 0 or codes.max() >= tokenizer.codebook_size:
            raise InputError(
                f"document {key:.80}: codes of shape {codes.shape} from {codes.min()} to {codes.max()}, expected "
                f"{tokenizer.grid_shape} in [0, {tokenizer.codebook_size}); decode with the tokenizer that made the codes"
            )
