"""Whole data sets to codes: `cm3 vqgan encode`.

    pictures (folder, tar, JSONL, table) ──► documents with codes instead of pictures, report.json

Threads decode pictures ahead while the network works. The rest (pieces, going on, the account) is `vqgan.pieces`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from cm3.documents.document import ImageSegment
from cm3.documents.report import ReadReport
from vqgan.loading import picture_array
from vqgan.picture_batches import convert_pictures
from vqgan.pieces import Converter, PiecesConfig, convert_in_pieces
from vqgan.preprocessing import to_pixels
from vqgan.tokenizer import VQTokenizer, check_codes, from_pretrained


class EncodeConfig(PiecesConfig):
    """As `PiecesConfig`; `draft` allows large JPEGs to be decoded at a fraction of their size (faster, slightly other pixels)."""

    draft: bool = False


def encode_documents(config: EncodeConfig) -> ReadReport:
    """Encode every picture of `config.data` and write the documents with their codes to `config.out`; returns the account.

    Text, order, meta and weight maps (`vqgan.regions`) stay. A document with a picture that can't be decoded, or with codes that
    the tokenizer doesn't have, is rejected whole. Raises and goes on as `vqgan.pieces.convert_in_pieces` says.
    """
    return convert_in_pieces(config, "encoding", partial(_open_encoder, config))


def _open_encoder(config: EncodeConfig) -> Converter:
    tokenizer = from_pretrained(config.tokenizer, config.device)
    return partial(
        convert_pictures,
        take=partial(_pixels, tokenizer, config.draft),
        make=partial(_encoded, tokenizer),
        batch_size=config.batch_size,
        workers=config.workers,
        keep_maps=True,
    )


def _pixels(tokenizer: VQTokenizer, draft: bool, segment: ImageSegment) -> np.ndarray | None:
    """(3, Y, X) uint8: the fitted picture; None for what is codes already. Raises `RecordError`."""
    if segment.has_picture:
        return picture_array(segment, tokenizer.image_size, tokenizer.config.preprocessing, draft)
    check_codes(segment, tokenizer)
    return None


def _encoded(tokenizer: VQTokenizer, arrays: Sequence[np.ndarray]) -> list[ImageSegment]:
    codes = tokenizer.encode(to_pixels(torch.from_numpy(np.stack(arrays)))).cpu().numpy()  # (B, h, w)
    return [ImageSegment(codes=grid) for grid in codes]
