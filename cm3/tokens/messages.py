"""Chat messages, as most APIs write them, to turns.

    {"role": "user" | "assistant", "content": "a text"}
    {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "what is this?"}]}

A picture is a PIL image, a path, or encoded bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cm3.core.errors import InputError
from cm3.documents.document import ImageSegment, Segment, TextSegment
from cm3.documents.images import decode_image
from cm3.tokens.text import require_encodable
from cm3.tokens.turns import Turn

Message = Mapping[str, Any]


def turns_of(messages: Sequence[Message]) -> list[Turn]:
    """The turns of a dialog, none of them trained. Raises `InputError` for a message that is not in this form."""
    if not messages:
        raise InputError("the dialog has no messages; give at least one")
    return [_turn(message) for message in messages]


def required_text(text: Any, what: str) -> str:
    """`text`, if it is one with something in it; `what` is what the `InputError` calls it otherwise."""
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"the {what} is empty; say something in words")
    try:
        return require_encodable(text)
    except InputError as error:
        raise InputError(f"the {what} cannot be used: {error}") from None


def _turn(message: Message) -> Turn:
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant"):
        raise InputError(f"a message has role {role!r}, expected 'user' or 'assistant'")
    items = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(items, Sequence) or not items:
        raise InputError("a message has no content; expected a text, or a list of text and image items")
    return Turn(role, tuple(_segment(item) for item in items))


def _segment(item: Any) -> Segment:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind == "text":
        return TextSegment(required_text(item.get("text"), "text of a message"))
    if kind == "image" and item.get("image") is not None:
        return ImageSegment(image=decode_image(item["image"]))
    raise InputError(f"a content item is {item!r:.80}, expected {{'type': 'text', 'text'}} or {{'type': 'image', 'image'}}")
