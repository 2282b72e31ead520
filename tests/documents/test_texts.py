"""Captions, keys and JSON from strangers: each kind of bad has its reason."""

from __future__ import annotations

from typing import Any

import pytest

from cm3.documents import RecordError, RejectReason
from cm3.documents.texts import check_key, check_text, decode_caption, parse_json

LIMIT = 1000


def reason_of(check: Any, *arguments: Any) -> RejectReason:
    with pytest.raises(RecordError) as caught:
        check(*arguments)
    return caught.value.reason


def test_captions() -> None:
    assert decode_caption("\ufeffein Käfer 🐞\r\n".encode(), LIMIT) == "ein Käfer 🐞"
    assert decode_caption(b"two\nlines", LIMIT) == "two\nlines"
    assert reason_of(decode_caption, b"", LIMIT) is RejectReason.EMPTY_TEXT
    assert reason_of(decode_caption, b" \n\t", LIMIT) is RejectReason.EMPTY_TEXT
    assert reason_of(decode_caption, b"caf\xe9", LIMIT) is RejectReason.TEXT_NOT_UTF8
    assert reason_of(decode_caption, b"\xff\xfea\0", LIMIT) is RejectReason.TEXT_NOT_UTF8
    assert reason_of(decode_caption, b"x" * (LIMIT + 1), LIMIT) is RejectReason.TEXT_TOO_LONG


def test_texts() -> None:
    assert check_text(" kept as it is ", LIMIT) == " kept as it is "
    assert reason_of(check_text, "half a pair \ud83d", LIMIT) is RejectReason.TEXT_NOT_UTF8
    assert reason_of(check_text, "ä" * (LIMIT // 2 + 1), LIMIT) is RejectReason.TEXT_TOO_LONG
    assert reason_of(check_text, "x" * 10 * 2**20, LIMIT) is RejectReason.TEXT_TOO_LONG
    for other in (None, 3, ["a"], {"text": "a"}):
        assert reason_of(check_text, other, LIMIT) is RejectReason.BAD_RECORD


def test_keys() -> None:
    assert check_key("a/b-1.png") == "a/b-1.png"
    assert check_key(17) == "17"
    assert check_key("a..b") == "a..b"
    for key in ("", " ", "..", "../a", "a/../b", "a\\..\\b", "a\0b", "a\nb", "\x1b[1m", "\ud800"):
        assert reason_of(check_key, key) is RejectReason.UNSAFE_KEY
    assert reason_of(check_key, "k" * 2**20) is RejectReason.KEY_TOO_LONG
    for key in (None, True, 1.5, ["a"]):
        assert reason_of(check_key, key) is RejectReason.BAD_RECORD


def test_json() -> None:
    assert parse_json('\ufeff{"a": 1}'.encode(), LIMIT) == {"a": 1}
    for data in (b"", b"{", b"{'a': 1}", b"[1,]", b"nope", b"[" * 900):
        assert reason_of(parse_json, data, LIMIT) is RejectReason.BAD_JSON
    assert reason_of(parse_json, b"[" * 200_000, 10**6) is RejectReason.BAD_JSON  # nested too deep
    assert reason_of(parse_json, b"1" * 10_000, 10**6) is RejectReason.BAD_JSON  # a number too long to convert
    assert reason_of(parse_json, b'"\xff"', LIMIT) is RejectReason.TEXT_NOT_UTF8
    assert reason_of(parse_json, b'"' + b"x" * LIMIT + b'"', LIMIT) is RejectReason.RECORD_TOO_LONG
