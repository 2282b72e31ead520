"""Why a record can be refused: one closed list of reasons, and the errors that carry one.

Readers count refusals by reason (`ReadReport`), so a reason is an identifier and never holds data of the record; the
message of the error does.
"""

from __future__ import annotations

from enum import StrEnum

from cm3.core.errors import InputError


class RejectReason(StrEnum):
    """Every reason for which a reader refuses a record."""

    # the picture
    MISSING_IMAGE = "missing_image"  # named, but there is no such file
    AMBIGUOUS_IMAGE = "ambiguous_image"  # the name fits several files
    UNREADABLE_IMAGE = "unreadable_image"  # the operating system refuses to read it
    EMPTY_IMAGE = "empty_image"  # zero bytes
    NOT_AN_IMAGE = "not_an_image"  # its first bytes are of no allowed format
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_PIXELS = "too_many_pixels"  # a decompression bomb, or just huge
    TOO_ELONGATED = "too_elongated"
    ANIMATED_IMAGE = "animated_image"  # several frames: a film, not a picture
    TRUNCATED_IMAGE = "truncated_image"
    CORRUPT_IMAGE = "corrupt_image"
    UNSUPPORTED_MODE = "unsupported_mode"  # a pixel layout without a known way to RGB
    WRONG_CODES = "wrong_codes"  # of another image tokenizer
    # the text
    MISSING_TEXT = "missing_text"
    EMPTY_TEXT = "empty_text"
    TEXT_NOT_UTF8 = "text_not_utf8"
    TEXT_TOO_LONG = "text_too_long"
    # the record
    BAD_JSON = "bad_json"
    BAD_RECORD = "bad_record"  # well-formed, but not what the format says
    RECORD_TOO_LONG = "record_too_long"
    NO_CONTENT = "no_content"  # neither text nor picture
    DUPLICATE_KEY = "duplicate_key"
    KEY_TOO_LONG = "key_too_long"
    UNSAFE_KEY = "unsafe_key"  # empty, "..", NUL or other control characters, lone surrogates
    # the shard
    TRUNCATED_SHARD = "truncated_shard"
    CORRUPT_SHARD = "corrupt_shard"


class RecordError(InputError):
    """One record (or shard) can't be used, for `reason`; readers count it and go on."""

    def __init__(self, reason: RejectReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ImageError(RecordError):
    """A picture can't be decoded, for `reason`."""
