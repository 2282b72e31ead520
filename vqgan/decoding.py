"""Data sets of codes back to pictures: `cm3 vqgan decode`, the way back of `vqgan.encoding`.

    documents with codes ──► documents with PNG pictures, report.json

Pictures that are not codes stay as they are. Threads compress while others do; the rest (pieces, going on, the account) is
`vqgan.pieces`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image

from cm3.documents.document import ImageSegment
from cm3.documents.report import ReadReport
from vqgan.loading import ordered_map
from vqgan.picture_batches import convert_pictures
from vqgan.pieces import Converter, PiecesConfig, convert_in_pieces
from vqgan.tokenizer import VQTokenizer, check_codes, from_pretrained


class DecodeConfig(PiecesConfig):
    """As `PiecesConfig`; `tokenizer` is the one that the codes of `data` were made with."""


def decode_documents(config: DecodeConfig) -> ReadReport:
    """Write the documents of `config.data` to `config.out` with pictures (PNG) instead of codes; returns the account.

    Text, order and meta stay. A document with codes that the tokenizer doesn't have is rejected whole. Raises and goes on as
    `vqgan.pieces.convert_in_pieces` says.
    """
    return convert_in_pieces(config, "decoding", partial(_open_decoder, config))


def _open_decoder(config: DecodeConfig) -> Converter:
    tokenizer = from_pretrained(config.tokenizer, config.device)
    return partial(
        convert_pictures,
        take=partial(_grid, tokenizer),
        make=partial(_drawn, tokenizer, config.workers),
        batch_size=config.batch_size,
    )


def _grid(tokenizer: VQTokenizer, segment: ImageSegment) -> np.ndarray | None:
    """(h, w) int64 codes; None for what is a picture already. Raises `RecordError`."""
    if segment.has_picture:
        return None
    check_codes(segment, tokenizer)
    return segment.codes


def _drawn(tokenizer: VQTokenizer, workers: int, grids: Sequence[np.ndarray]) -> list[ImageSegment]:
    images = tokenizer.postprocess(tokenizer.decode(torch.from_numpy(np.stack(grids))))
    return list(ordered_map(_png, images, workers))


def _png(image: Image.Image) -> ImageSegment:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")  # Pillow lets go of the interpreter while it compresses
    return ImageSegment(encoded=buffer.getvalue())
