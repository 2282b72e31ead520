"""One vocabulary for everything: special tokens, text and image codes as ranges of one id space.

    default layout      <pad> <bos> <eos> <break> <eoss> | <mask:0> … | text ids | image ids
                           0     1     2      3       4  |     5    … |          |

Every question about an id is answered by comparing it with a range; nothing walks a dictionary. All ranges are
fields, so a released layout such as Chameleon's (image ids 4..8195, marks around pictures, text after) is expressed by
giving them (arXiv:2405.09818; arXiv:2309.02591 for `<break>`, arXiv:2201.07520 for the mask tokens). `layout.py` says
which of them stand between segments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, Literal

from cm3.core.errors import UsageError

SpanKind = Literal["text", "image"]

AFTER = -1  # "right after what comes before", in place of an id


@dataclass(frozen=True)
class Vocab:
    """The id ranges of one model.

    text_size: number of text ids; codebook_size: number of image codes; grid_shape: code rows and columns (h, w) of one
    picture; num_masks: how many sentinels `<mask:i>` there are. The rest places the ranges; what is left out (`AFTER`)
    follows the default layout. `size` is the number of ids in all and may be larger than needed (padded embeddings).
    image_open_id, image_close_id: marks before and behind every picture, both or neither (see `layout.py`).

    Raises `UsageError` when a size is not positive, two ranges overlap, or an id lies outside `size`.
    """

    text_size: int
    codebook_size: int
    grid_shape: tuple[int, int]
    num_masks: int = 16
    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    break_id: int = 3
    eoss_id: int = 4
    mask_start: int = 5
    text_start: int = AFTER
    image_start: int = AFTER
    size: int = AFTER
    image_open_id: int | None = None
    image_close_id: int | None = None

    def __post_init__(self) -> None:
        self._require_positive_sizes()
        put = object.__setattr__  # the dataclass is frozen; this completes it
        put(self, "grid_shape", tuple(int(n) for n in self.grid_shape))
        if self.text_start == AFTER:
            put(self, "text_start", self.mask_start + self.num_masks)
        if self.image_start == AFTER:
            put(self, "image_start", self.text_stop)
        if self.size == AFTER:
            put(self, "size", max(stop for _, _, stop in self._ranges()))
        self._require_disjoint_ranges()

    @property
    def mask_stop(self) -> int:
        """One past the last sentinel id."""
        return self.mask_start + self.num_masks

    @property
    def text_stop(self) -> int:
        """One past the last text id."""
        return self.text_start + self.text_size

    @property
    def image_stop(self) -> int:
        """One past the last image id."""
        return self.image_start + self.codebook_size

    @property
    def num_image_tokens(self) -> int:
        """Tokens of one picture: h · w."""
        return self.grid_shape[0] * self.grid_shape[1]

    @property
    def image_marks(self) -> tuple[int, int] | None:
        """The ids before and behind every picture; None: pictures are parted by `<break>`, as texts are."""
        if self.image_open_id is None or self.image_close_id is None:
            return None
        return self.image_open_id, self.image_close_id

    def mask_id(self, index: int) -> int:
        """The id of `<mask:index>`. Raises `UsageError` outside [0, num_masks)."""
        if not 0 <= index < self.num_masks:
            raise UsageError(f"there is no <mask:{index}>: the vocabulary has num_masks={self.num_masks}; make it larger")
        return self.mask_start + index

    def is_text(self, ids: Any) -> Any:
        """Which ids are text: bool for an int, a boolean array or tensor of the same shape otherwise."""
        return self._within(ids, self.text_start, self.text_stop)

    def is_image(self, ids: Any) -> Any:
        """Which ids are image codes; shapes as for `is_text`."""
        return self._within(ids, self.image_start, self.image_stop)

    def is_mask(self, ids: Any) -> Any:
        """Which ids are sentinels `<mask:i>`; shapes as for `is_text`."""
        return self._within(ids, self.mask_start, self.mask_stop)

    def image_ids(self, codes: Any) -> Any:
        """Codes in [0, codebook_size) → token ids (int, array or tensor)."""
        return codes + self.image_start

    def codes(self, ids: Any) -> Any:
        """Image token ids → codes in [0, codebook_size) (int, array or tensor)."""
        return ids - self.image_start

    def special_tokens(self) -> dict[str, int]:
        """Our spelling → id of every special token, in the order of the default layout."""
        ids = [self.pad_id, self.bos_id, self.eos_id, self.break_id, self.eoss_id, *range(self.mask_start, self.mask_stop)]
        named = dict(zip(special_names(self.num_masks), ids))
        marks = {"<image>": self.image_open_id, "</image>": self.image_close_id}
        return named | {name: id_ for name, id_ in marks.items() if id_ is not None}

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over all ranges: token ids made under one fingerprint mean the same under the same fingerprint."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values; `from_json` inverts it."""
        values = asdict(self) | {"grid_shape": list(self.grid_shape)}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Vocab:
        """The vocabulary written by `to_json`. Raises `UsageError` for a missing or unknown field."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UsageError(f"the vocabulary has no field {unknown[0]!r}; known: {', '.join(sorted(known))}")
        if missing := sorted({"text_size", "codebook_size", "grid_shape"} - set(values)):
            raise UsageError(f"the vocabulary lacks the field {missing[0]!r}")
        return cls(**values)

    @staticmethod
    def _within(ids: Any, start: int, stop: int) -> Any:
        if isinstance(ids, int):
            return start <= ids < stop
        return (ids >= start) & (ids < stop)

    def _ranges(self) -> list[tuple[str, int, int]]:
        specials = ("pad_id", "bos_id", "eos_id", "break_id", "eoss_id", "image_open_id", "image_close_id")
        given = [(name, getattr(self, name)) for name in specials if getattr(self, name) is not None]
        singles = [(name, id_, id_ + 1) for name, id_ in given]
        masks = ("the sentinels", self.mask_start, self.mask_stop)
        return [*singles, masks, ("text", self.text_start, self.text_stop), ("image", self.image_start, self.image_stop)]

    def _require_positive_sizes(self) -> None:
        if len(self.grid_shape) != 2:
            raise UsageError(f"grid_shape={self.grid_shape!r} is not (rows, columns); give two whole numbers")
        named = {name: getattr(self, name) for name in ("text_size", "codebook_size", "num_masks")}
        for name, value in (named | {"grid_shape": min(self.grid_shape)}).items():
            if value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        if (self.image_open_id is None) != (self.image_close_id is None):
            raise UsageError("image_open_id and image_close_id belong together; give both or neither")

    def _require_disjoint_ranges(self) -> None:
        ranges = sorted(self._ranges(), key=lambda entry: entry[1])
        if ranges[0][1] < 0:
            raise UsageError(f"{ranges[0][0]} starts at {ranges[0][1]}; ids must not be negative")
        for (name, start, stop), (other, other_start, other_stop) in pairwise(ranges):
            if other_start < stop:
                raise UsageError(
                    f"id ranges overlap: {name} is {start}..{stop - 1} and {other} is {other_start}..{other_stop - 1}"
                )
        needed = max(stop for _, _, stop in ranges)
        if self.size < needed:
            raise UsageError(f"size={self.size} is too small: the ranges reach id {needed - 1}; use at least {needed}")


def special_names(num_masks: int) -> list[str]:
    """Spellings of the special tokens, in id order of the default layout."""
    return ["<pad>", "<bos>", "<eos>", "<break>", "<eoss>", *(f"<mask:{index}>" for index in range(num_masks))]
