"""Pictures of documents to arrays of one size: decoding and fitting, in threads and in order.

Pillow lets go of the interpreter while it decodes and resizes, so threads are enough, and nothing has to be sent between
processes. The result does not depend on their number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image

from cm3.documents.document import ImageSegment
from cm3.documents.images import DEFAULT_LIMITS, decode_image
from vqgan.config import PreprocessConfig
from vqgan.preprocessing import fitted_array

_AHEAD = 4  # items per worker that are ready or in work

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int = 1) -> Iterator[Result]:
    """`function` of every item, in the order of the items, worked out by `workers` threads a little ahead of the reader.

    What `function` raises is raised in its place.
    """
    if workers == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= workers * _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def picture(segment: ImageSegment, size: int, draft: bool = False) -> Image.Image:
    """The picture of a segment, upright RGB, undrafted unless `draft` allows a smaller decoding for side `size`.

    Raises `ImageError` when it can't be decoded. The segment must hold one.
    """
    if segment.image is not None:
        return decode_image(segment.image)
    source = segment.encoded if segment.encoded is not None else segment.path
    if source is None:
        raise ValueError("the segment holds no picture")
    return decode_image(source, DEFAULT_LIMITS, size if draft else None)


def picture_array(segment: ImageSegment, size: int, config: PreprocessConfig, draft: bool = False) -> np.ndarray:
    """(3, size, size) uint8: the picture of a segment, fitted as `config` says. Raises `ImageError`."""
    return fitted_array(picture(segment, size, draft), size, config)
