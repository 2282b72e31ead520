"""Chat messages to turns."""

import pytest
from PIL import Image

from cm3.core.errors import InputError
from cm3.documents.document import ImageSegment, TextSegment
from cm3.tokens.messages import required_text, turns_of


def test_texts_and_pictures():
    picture = Image.new("RGB", (2, 2), (9, 9, 9))
    items = [{"type": "image", "image": picture}, {"type": "text", "text": "what?"}]
    first, second = turns_of([{"role": "user", "content": items}, {"role": "assistant", "content": "gray"}])
    assert (first.role, second.role, first.train, second.train) == ("user", "assistant", False, False)
    assert isinstance(first.segments[0], ImageSegment)
    assert first.segments[0].load().tobytes() == picture.tobytes()
    assert (first.segments[1], second.segments) == (TextSegment("what?"), (TextSegment("gray"),))


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "no messages"),
        ([{"content": "x"}], "role None"),
        ([{"role": "user"}], "no content"),
        ([{"role": "user", "content": []}], "no content"),
        ([{"role": "user", "content": " "}], "empty"),
        ([{"role": "user", "content": [{"type": "text"}]}], "empty"),
        ([{"role": "user", "content": ["x"]}], "content item"),
        ([{"role": "user", "content": [{"type": "image"}]}], "content item"),
        ([{"role": "user", "content": [{"type": "image", "image": b"x"}]}], "no picture"),
    ],
)
def test_what_is_no_message(messages, words):
    with pytest.raises(InputError, match=words):
        turns_of(messages)


def test_required_text():
    assert required_text(" x ", "prompt") == " x "
    with pytest.raises(InputError, match="prompt is empty"):
        required_text(None, "prompt")
