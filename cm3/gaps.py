"""Requests to fill something in: gaps in a text, regions of a picture, as documents masked the way training masks them.

"a large ___ circle", picture    <bos> a large <mask:0> circle <break> ▦▦▦▦ <mask:0> …       the model says what is missing
"___", picture                   <bos> <mask:0> <break> ▦▦▦▦ <mask:0> …                      a caption (arXiv:2309.02591 §2.2)
"how many circles? ___", picture                                                            an answer
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from cm3.core.errors import InputError, UsageError
from cm3.core.protocols import ImageTokenizer
from cm3.decode import fill
from cm3.documents.document import ImageSegment
from cm3.sequences.masking import mask_spans, restore
from cm3.tokens.document_tokenizer import DocumentTokenizer
from cm3.tokens.messages import required_text
from cm3.tokens.regions import box_mask, image_mask, mask_cells
from cm3.tokens.tokenized import TokenizedDocument, assemble
from cm3.tokens.vocab import Vocab

GAP = "___"
Boxes = Sequence[int] | Sequence[Sequence[int]]


def text_with_gaps(text: str, image: ImageSegment | None, tokenizer: DocumentTokenizer, gap: str = GAP) -> TokenizedDocument:
    """`text`, then the picture if there is one; every `gap` in the text becomes a masked span of one token, to be filled.

    The space before a gap belongs to what fills it, as in the tokens of training, the one behind it to the text. Raises
    `InputError` for a text without a gap, `UsageError` for more gaps than the vocabulary has sentinels.
    """
    vocab, pieces = tokenizer.vocab, required_text(text, "text").split(gap)
    if len(pieces) == 1:
        raise InputError(f"the text has no gap; write {gap} where something is to be filled in")
    encode, ids, places = tokenizer.text.encode, list[int](), []
    for piece in pieces[:-1]:
        kept = piece.removesuffix(" ")
        ids += encode(kept) if kept else []
        encode = tokenizer.text.encode_continued
        places.append(len(ids))
        ids.append(vocab.text_start)  # stands for what is missing; nobody looks at it
    ids += encode(pieces[-1]) if pieces[-1] else []
    behind = tokenizer.encode_segments([image]) if image is not None else []
    document = assemble([("text", np.asarray(ids, np.int64)), *behind], vocab)
    start = document.spans[0].start
    return mask_spans(document, [(start + place, start + place + 1) for place in places], vocab)


def filled_text(text: str, fills: Sequence[str], gap: str = GAP) -> str:
    """`text` with `fills` in place of its gaps; all else, the space around the gaps included, stays as it is."""
    first, *others = text.split(gap)
    return first + "".join(fill.strip() + piece for fill, piece in zip(fills, others, strict=True))


def region_cells(
    image: ImageSegment, tokenizer: ImageTokenizer, mask: Image.Image | np.ndarray | None, box: Boxes | None
) -> np.ndarray:
    """(h, w) bool: the codes of `image` that a mask, or one or several boxes (x0, y0, x1, y1), touch.

    Raises `UsageError` unless exactly one of them is given, and for a box outside the picture; `InputError` for a region
    that touches nothing or everything.
    """
    if mask is None and box is None:
        raise UsageError("infilling needs a region: give either a mask or a box")
    if mask is not None and box is not None:
        raise UsageError("infilling takes one region and was given both a mask and a box; leave one of them out")
    size = image.load().size
    if box is None:
        marked = image_mask(mask, size)  # type: ignore[arg-type]
    else:
        marked = np.logical_or.reduce([box_mask(size, corners) for corners in _boxes(box)])
    cells = mask_cells(marked, tokenizer)
    if cells.all():
        raise InputError("the region covers the whole picture, so nothing of it would stay; mark less, or draw a new picture")
    return cells


def picture_codes(masked_ids: np.ndarray, vocab: Vocab) -> np.ndarray:
    """The codes (h, w) of the one picture of a masked sequence (T,), its spans put back in their places."""
    ids = restore(masked_ids, vocab)
    return vocab.codes(ids[vocab.is_image(ids)]).reshape(vocab.grid_shape)


def region_codes(cells: np.ndarray, masked: TokenizedDocument, answer_ids: np.ndarray, vocab: Vocab) -> np.ndarray:
    """The codes (h, w) of a picture in which `answer_ids` fill `cells` (h, w) bool, by the masked sequence made of them.

    A region of more runs than there are sentinels was closed up; what that added is put back as it was.
    """
    return np.where(cells, picture_codes(fill(masked, answer_ids, vocab), vocab), picture_codes(masked.token_ids, vocab))


def _boxes(box: Boxes) -> list[Sequence[int]]:
    """One box or several as a list."""
    if len(box) and isinstance(box[0], Sequence | np.ndarray):
        return list(box)  # type: ignore[arg-type]
    return [box]  # type: ignore[list-item]
