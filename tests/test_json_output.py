"""What commands print with `--json`: one JSON value on stdout, with exactly the keys that programs hold on to."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from cm3.pipeline import CM3Pipeline

IN_3X3 = (3, 3)


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


@pytest.fixture
def printed(command):
    """Runs a command with --json and gives what it printed."""
    return lambda *arguments: json.loads(command.works(*arguments, "--json"))


def test_generate(printed, toy_model, tmp_path):
    found = printed("generate", toy_model, "a red circle", "-n", "3", "--seed", "5", "--out", "out")
    assert set(found) == {"images", "seconds", "tokens_per_s"}
    assert all(set(image) == {"path", "seed", "score", "codes"} for image in found["images"])
    assert [image["seed"] for image in found["images"]] == [[5, 0], [5, 1], [5, 2]]
    assert [image["score"] for image in found["images"]] == [None] * 3
    assert found["seconds"] > 0
    assert found["tokens_per_s"] > 0
    for image in found["images"]:
        assert np.array(image["codes"]).shape == IN_3X3
        assert size_of(tmp_path / image["path"]) == (24, 24)
    one = printed("generate", toy_model, "a red circle", "-n", "1", "--seed", "5", "--out", "other")
    assert one["images"][0]["codes"] == found["images"][0]["codes"]
    assert (tmp_path / one["images"][0]["path"]).read_bytes() == (tmp_path / found["images"][0]["path"]).read_bytes()


def test_generate_with_everything(printed, toy_model):
    asked = ["--best-of", "2", "--retrieve", "2", "--guidance", "2", "--temperature", "1", "--top-p", "0.9", "--top-k", "20"]
    [image] = printed("generate", toy_model, "a red circle", "-n", "1", *asked)["images"]
    assert isinstance(image["score"], float)
    assert [set(candidate) for candidate in image["candidates"]] == [{"seed", "score"}] * 2
    assert image["score"] == max(candidate["score"] for candidate in image["candidates"])
    options = ["--strategy", "contrastive", "--option", "k=3", "--option", "alpha=0.2"]
    assert len(printed("generate", toy_model, "a red circle", "-n", "2", *options)["images"]) == 2


def test_generate_with_a_repetition_penalty(printed, toy_model):
    """The likeliest codes repeat; under so high a penalty none comes twice."""
    asked = ["generate", toy_model, "a red circle", "-n", "1", "--temperature", "0"]
    [plain], [penalized] = (printed(*asked, *more)["images"] for more in ([], ["--repetition-penalty", "1e6"]))
    assert len(np.unique(plain["codes"])) < 9
    assert len(np.unique(penalized["codes"])) == 9


def test_generate_compiles_where_it_is_asked_to(printed, toy_model, monkeypatch):
    compiled, asked = [], ["generate", str(toy_model), "a red circle", "-n", "1"]
    monkeypatch.setattr("cm3.decode.engine.compiled", compiled.append)
    plain, found = (printed(*asked, *more)["images"][0]["codes"] for more in ([], ["--compile"]))
    assert (compiled, found) == ([None], plain)  # on a CPU there is nothing to record what is compiled


def test_generate_with_int8_weights(printed, toy_model):
    """The pictures of the rounded weights, of which some are others than those of the full ones."""
    asked = ["generate", toy_model, "a red circle", "-n", "48", "--seed", "5"]
    full, found = ([image["codes"] for image in printed(*asked, *more)["images"]] for more in ([], ["--int8"]))
    rounded = CM3Pipeline.from_pretrained(toy_model, int8=True).draw("a red circle", 48, seed=5)
    assert found == [drawn.codes.tolist() for drawn in rounded]
    assert found != full


def test_texts(printed, toy_model, picture):
    for arguments in (["caption", toy_model, picture], ["ask", toy_model, picture, "how many circles?"]):
        found = printed(*arguments)
        assert set(found) == {"text"}
        assert isinstance(found["text"], str)
    several = printed("caption", toy_model, picture, picture)
    assert [set(entry) for entry in several] == [{"image", "text"}] * 2


def test_changed_pictures(printed, toy_model, picture, tmp_path):
    for arguments in (["edit", toy_model, picture, "make it red"], ["infill", toy_model, picture, "--box", "0,0,8,24"]):
        found = printed(*arguments)
        assert set(found) == {"path", "codes"}
        assert np.array(found["codes"]).shape == IN_3X3
        assert size_of(tmp_path / found["path"]) == (24, 24)


def test_changed_pictures_with_everything(printed, toy_model, picture, tmp_path):
    drawing = ["-n", "2", "--best-of", "2", "--rerank", "likelihood", "--guidance", "2", "--top-k", "20", "--window", "3"]
    for arguments in (["edit", "make it red"], ["infill", "--box", "0,0,8,24", "--prompt", "a red circle", "--min-p", "0.01"]):
        images = printed(arguments[0], toy_model, picture, *arguments[1:], *drawing)["images"]
        assert [len(image["candidates"]) for image in images] == [2, 2]
        assert [size_of(tmp_path / path) for path in {image["path"] for image in images}] == [(24, 24)] * 2


def test_chat(command, toy_model, picture, tmp_path, monkeypatch):
    said = [
        "hello",
        f"/image {picture}",
        "how many circles?",
        "/help",
        "/new",
        "/image nowhere.png",
        "describe",
        "/quit",
        "never read",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(said)))
    done = command("chat", toy_model, "--temperature", "1", "--json")
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0
    assert len(answers) == 3
    for answer in answers:
        assert set(answer) in ({"text"}, {"path", "codes"})
        if "path" in answer:
            assert size_of(tmp_path / answer["path"]) == (24, 24)
    assert "no picture at" in done.err


def test_eval(printed, toy_model, pictures):
    found = printed("eval", toy_model, pictures("data", 4), "--task", "text_to_image", "-n", "3")
    assert set(found) == {"text_to_image"}
    assert set(found["text_to_image"]) == {"accuracy", "low", "high", "n", "chance", "ceiling", "split"}
    assert found["text_to_image"]["n"] == 3


def test_retrieval(printed, toy_model, pictures, picture, tmp_path):
    found = printed("retrieval", "search", toy_model, "--text", "picture", "--k", "3")
    assert [set(entry) for entry in found] == [{"id", "score", "rank", "text", "image"}] * 3
    assert [entry["rank"] for entry in found] == [0, 1, 2]
    assert [entry["score"] for entry in found] == sorted((entry["score"] for entry in found), reverse=True)
    [nearest] = printed("retrieval", "search", toy_model / "memory", "--image", picture, "--k", "1", "--pictures", "found")
    assert size_of(tmp_path / nearest["image"]) == (24, 24)
    built = printed("retrieval", "build", pictures("data", 4), "memory", "--encoder", "hashing")
    assert (built["count"], built["rejected"]) == (4, {})
    assert set(printed("retrieval", "info", "memory")) >= {"count", "encoder", "index", "recall"}


def test_info_verify_and_list(printed, toy_model):
    info = printed("info", toy_model)
    assert set(info) == {"path", "kind", "bytes", "files", "fingerprint", "versions", "provenance"}
    verified = printed("verify", toy_model)
    assert set(verified) == {"ok", "kind", "files", "fingerprint"}
    assert (verified["ok"], verified["kind"], verified["files"]) == (True, "model", len(info["files"]))
    assert verified["fingerprint"] == info["fingerprint"]
    assert "strategies" in printed("list")


def test_data_check(command, pictures):
    data = pictures("data", 4)
    (data / "00.png").write_bytes(b"junk")
    done = command("sft", "data", "check", data, "--format", "pairs", "--json")
    found = json.loads(done.out)
    assert done.code == 1
    assert (found["ok"], found["rejected"]) == (3, {"not_an_image": 1})
    assert [set(problem) for problem in found["problems"]] == [{"file", "line", "field", "message"}]


def test_where_the_terminal_lacks_letters_json_stays_json(command, toy_model, picture, monkeypatch):
    monkeypatch.setattr("cm3.pipeline.CM3Pipeline.caption", lambda *_, **__: "€ and 🙂")
    with io.TextIOWrapper(io.BytesIO(), encoding="latin-1") as terminal, monkeypatch.context() as patched:
        patched.setattr("sys.stdout", terminal)
        assert command("caption", toy_model, picture, "--json").code == 0
        assert json.loads(terminal.buffer.getvalue()) == {"text": "€ and 🙂"}
