"""Checks on what a data set says in words: captions, keys, JSON lines. Each refusal has a named reason."""

from __future__ import annotations

import json
from typing import Any

from cm3.documents.reasons import RecordError, RejectReason

MAX_KEY_LENGTH = 1024


def check_text(text: Any, max_bytes: int) -> str:
    """Return `text` unchanged if it is a usable text: a string with something in it, encodable, not too long.

    Raises `RecordError`: bad_record, text_not_utf8, text_too_long, empty_text.
    """
    if not isinstance(text, str):
        raise RecordError(RejectReason.BAD_RECORD, f"the text is of type {type(text).__name__}, expected a string")
    if len(text) > max_bytes:
        raise _too_long(max_bytes)
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise RecordError(RejectReason.TEXT_NOT_UTF8, "the text holds half a surrogate pair, which is no character") from None
    if size > max_bytes:
        raise _too_long(max_bytes)
    if not text.strip():
        raise RecordError(RejectReason.EMPTY_TEXT, "the text is empty")
    return text


def decode_caption(data: bytes, max_bytes: int) -> str:
    """The caption in a text file: UTF-8 (a byte order mark is dropped), without surrounding white space.

    Raises `RecordError` as `check_text` does.
    """
    if len(data) > max_bytes:
        raise _too_long(max_bytes)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"the text is not UTF-8 (byte {error.start}); save it as UTF-8"
        raise RecordError(RejectReason.TEXT_NOT_UTF8, message) from None
    return check_text(text.strip(), max_bytes)


def parse_json(data: bytes, max_bytes: int) -> Any:
    """The JSON value in `data` (UTF-8). NaN and infinities, which JSON doesn't have but pandas writes, are None.

    Raises `RecordError`: record_too_long, text_not_utf8, bad_json.
    """
    if len(data) > max_bytes:
        raise RecordError(RejectReason.RECORD_TOO_LONG, f"the JSON is longer than {max_bytes:,} bytes")
    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=lambda _: None)
    except UnicodeDecodeError as error:
        raise RecordError(RejectReason.TEXT_NOT_UTF8, f"the JSON is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise RecordError(RejectReason.BAD_JSON, f"this is not JSON: {error.msg} (column {error.colno})") from None
    except (RecursionError, ValueError) as error:  # nested too deep; an integer of thousands of digits
        raise RecordError(RejectReason.BAD_JSON, f"this JSON cannot be read: {error}") from None


def check_key(key: Any) -> str:
    """Return `key` as a string if it may name a record: not empty, not too long, nothing that could pass for a path upwards.

    Raises `RecordError`: bad_record, key_too_long, unsafe_key.
    """
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise RecordError(RejectReason.BAD_RECORD, f"the id is of type {type(key).__name__}, expected a string")
    key = str(key)
    if len(key) > MAX_KEY_LENGTH:
        raise RecordError(RejectReason.KEY_TOO_LONG, f"the id has {len(key):,} characters, at most {MAX_KEY_LENGTH} are accepted")
    if not key.strip() or ".." in key.replace("\\", "/").split("/") or not key.isprintable():
        raise RecordError(RejectReason.UNSAFE_KEY, f"the id {key!a:.80} is empty, leads upwards, or holds control characters")
    return key


def _too_long(max_bytes: int) -> RecordError:
    return RecordError(RejectReason.TEXT_TOO_LONG, f"the text is longer than {max_bytes:,} bytes")
