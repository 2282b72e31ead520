"""What people bring, container by container, and what is said about what cannot be used."""

import json

import pytest
from PIL import Image

from cm3.core.errors import BudgetError, UsageError
from cm3.documents.document import ImageSegment, TextSegment
from cm3.documents.writers import write_documents
from cm3.scenes.dataset import edit_document, pair_document, vqa_document
from cm3.scenes.world import WorldConfig
from sft.formats import FORMATS, check, read_format


@pytest.fixture
def jsonl(tmp_path):
    """Writes lines (values, or raw text) beside the pictures a.png, b.png and m.png."""
    for index, name in enumerate(("a", "b", "m")):
        Image.new("RGB", (4, 4), (index, 0, 0)).save(tmp_path / f"{name}.png")

    def write(*lines):
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
        return path

    return write


def red(segment: ImageSegment) -> int:
    return segment.load().getpixel((0, 0))[0]


def test_pairs(jsonl):
    path = jsonl({"image": "a.png", "caption": "one"}, {"image": "b.png", "captions": ["two", "2"], "id": "x"})
    first, second = read_format(path, "pairs")
    assert (first.text, red(first.images[0])) == ("one", 0)
    assert (second.id, second.text, second.meta["captions"]) == ("x", "two", ["two", "2"])


def test_the_picture_may_come_first(jsonl):
    segments = [{"type": "image", "path": "b.png"}, {"type": "text", "text": "t"}]
    [document] = read_format(jsonl({"segments": segments}), "pairs")
    assert [type(segment) for segment in document.segments] == [TextSegment, ImageSegment]


def test_questions(jsonl):
    path = jsonl(
        {"image": "a.png", "question": "q?", "answer": "yes"},
        {"image": "b.png", "questions": [{"question": "q?", "answer": "no", "kind": "existence"}]},
        {"image": "a.png", "question": "q?", "answer": "yes", "explanation": "because"},
    )
    one, many, explained = read_format(path, "vqa")
    assert one.meta["questions"] == [{"question": "q?", "answer": "yes"}]
    assert many.meta["questions"][0]["kind"] == "existence"
    assert explained.meta["questions"] == [{"question": "q?", "answer": "yes", "explanation": "because"}]


def test_edits(jsonl):
    path = jsonl(
        {"source": "a.png", "target": "b.png", "mask": "m.png", "instruction": "redder"},
        {"images": ["a.png", "b.png"], "instruction": "redder"},
        {"images": ["a.png", "b.png"], "text": "redder"},
    )
    for document in (documents := list(read_format(path, "edits"))):
        assert document.text == "redder"
        assert [red(picture) for picture in document.images[:2]] == [0, 1]
        assert isinstance(document.segments[1], TextSegment)
    assert documents[0].meta["images"] == ["source", "target", "mask"]
    assert red(documents[0].images[2]) == 2


@pytest.mark.parametrize(("part", "make"), [("pairs", pair_document), ("vqa", vqa_document), ("edits", edit_document)])
@pytest.mark.parametrize("container", ["webdataset", "jsonl"])
def test_the_embedded_world_reads_in_every_container(tmp_path, part, make, container):
    made = [make(WorldConfig(), "train", 0, index) for index in range(3)]
    write_documents(made, tmp_path / "out", format=container)
    read = list(read_format(tmp_path / "out", part))
    assert [document.id for document in read] == [document.id for document in made]
    for document, original in zip(read, made):
        names = document.meta.get("images")
        given = dict(zip(original.meta.get("images", [None]), original.images))
        for name, picture in zip(names or [None], document.images):
            assert picture.load().tobytes() == given[name].load().tobytes()
    if part == "edits":
        assert read[0].meta["images"] == ["source", "target", "mask"]
        assert read[0].text == made[0].meta["instruction"]


BAD = {
    "pairs": [
        ({"image": "a.png"}, "missing_text", "text"),
        ({"text": "x"}, "missing_image", "image"),
        ({"image": "a.png", "text": "  "}, "empty_text", "text"),
        ({"images": ["a.png", "b.png"], "text": "x"}, "bad_record", "image"),
        ({"image": "none.png", "text": "x"}, "missing_image", "image"),
        ({"image": "a.png", "captions": "x"}, "bad_record", "captions"),
        ("{", "bad_json", ""),
    ],
    "vqa": [
        ({"image": "a.png", "question": "q?"}, "missing_text", "answer"),
        ({"image": "a.png", "questions": []}, "bad_record", "questions"),
        ({"image": "a.png", "questions": ["q?"]}, "bad_record", "questions[0]"),
        ({"image": "a.png", "questions": [{"question": "q?", "answer": ""}]}, "empty_text", "questions[0].answer"),
        ({"image": "a.png", "question": "q?", "answer": "a", "explanation": 3}, "bad_record", "explanation"),
        ({"question": "q?", "answer": "a"}, "missing_image", "image"),
    ],
    "edits": [
        ({"source": "a.png", "instruction": "x"}, "missing_image", "target"),
        ({"source": "a.png", "target": "b.png"}, "missing_text", "instruction"),
        ({"source": "a.png", "target": "none.png", "instruction": "x"}, "missing_image", "target"),
        ({"source": 3, "target": "b.png", "instruction": "x"}, "bad_record", "source"),
        ({"images": ["a.png", "b.png", "m.png", "a.png"], "instruction": "x"}, "bad_record", "images"),
        ({"source": "a.png", "target": "b.png", "instruction": 5}, "bad_record", "instruction"),
    ],
}
GOOD = {
    "pairs": {"image": "a.png", "text": "x"},
    "vqa": {"image": "a.png", "question": "q?", "answer": "a"},
    "edits": {"source": "a.png", "target": "b.png", "instruction": "x"},
}


@pytest.mark.parametrize(
    ("format", "record", "reason", "field"), [(name, *case) for name, cases in BAD.items() for case in cases]
)
def test_a_bad_record_is_reported_with_line_and_field(jsonl, format, record, reason, field):
    path = jsonl(GOOD[format], record, GOOD[format])
    found = check(path, format)
    assert (found["ok"], found["rejected"]) == (2, {reason: 1})
    [problem] = found["problems"]
    assert (problem["file"], problem["line"], problem["field"]) == (str(path), 2, field)
    assert problem["message"]


def test_too_many_bad_records_stop_the_reading(jsonl):
    with pytest.raises(BudgetError, match="missing_text 1"):
        list(read_format(jsonl(GOOD["pairs"], {"image": "a.png"}), "pairs"))


def test_check_is_json(jsonl):
    json.dumps(check(jsonl(GOOD["vqa"], {"image": "a.png"}), "vqa"))


def test_unknown_format():
    with pytest.raises(UsageError, match="pairs"):
        list(read_format("x", "pair"))
    assert FORMATS.names() == ["pairs", "vqa", "edits"]
