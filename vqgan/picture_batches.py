"""The pictures of many documents through the network, in batches that are always cut the same way.

    document ──take──► what the network needs of each picture ──make, a batch at a time──► the same document, other pictures

`take` runs in threads a little ahead; what it refuses rejects the document whole. Documents leave as soon as all of their
pictures are made, so that no more than a few batches stand in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from cm3.documents.document import Document, ImageSegment
from cm3.documents.reasons import RecordError
from cm3.documents.report import Problem
from vqgan.loading import ordered_map
from vqgan.regions import MAP_NAME, picture_names

Item = TypeVar("Item")


def convert_pictures(
    documents: Sequence[Document],
    take: Callable[[ImageSegment], Item | None],
    make: Callable[[Sequence[Item]], Sequence[ImageSegment]],
    batch_size: int,
    workers: int = 1,
    keep_maps: bool = False,
) -> Iterator[Document | Problem]:
    """Every document with its pictures converted, in order, or why it can't be.

    take: what is needed of a picture, None to leave it as it is; raises `RecordError` for one that can't be used.
    make: the new pictures of up to `batch_size` of those.
    keep_maps: leave the weight maps among the pictures (`vqgan.regions`) as they are, unseen by `take`.
    """
    kept: deque[tuple[Document, list[bool]]] = deque()  # waiting for pictures, and which of theirs are to be replaced
    items: list[Item] = []
    made: deque[ImageSegment] = deque()
    for document, taken in zip(documents, ordered_map(partial(_taken, take, keep_maps), documents, workers)):
        if isinstance(taken, Problem):
            yield taken
            continue
        kept.append((document, [item is not None for item in taken]))
        items += [item for item in taken if item is not None]
        while len(items) >= batch_size:
            made.extend(make(items[:batch_size]))
            del items[:batch_size]
        while kept and sum(kept[0][1]) <= len(made):
            yield _replaced(*kept.popleft(), made)
    if items:
        made.extend(make(items))
    for document, replaced in kept:
        yield _replaced(document, replaced, made)


def _taken(take: Callable[[ImageSegment], Item | None], keep_maps: bool, document: Document) -> list[Item | None] | Problem:
    taken = []
    for number, (segment, name) in enumerate(zip(document.images, picture_names(document))):
        try:
            taken.append(None if keep_maps and name == MAP_NAME else take(segment))
        except RecordError as error:
            return Problem(document.id, f"picture {number}", error.reason, str(error))
    return taken


def _replaced(document: Document, replaced: Sequence[bool], made: deque[ImageSegment]) -> Document:
    """The document with the next of `made` in the place of every picture that is to be replaced."""
    which = iter(replaced)
    segments = [made.popleft() if isinstance(segment, ImageSegment) and next(which) else segment for segment in document.segments]
    return replace(document, segments=tuple(segments))
