"""Bad input on the command line: one sentence that says what is wrong, the documented exit code, and nothing else.

Damaged model folders are in `test_bad_folders.py`; full disks, signals and locks in `test_interruptions.py`.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

NO_UNICODE = "caf\udce9"  # what Python makes of an argument in Latin-1


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 60,000×60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.fixture
def bad_pictures(tmp_path: Path, picture: Path) -> Path:
    """A folder of files that are no usable picture."""
    folder = tmp_path / "bad"
    (folder / "folder.png").mkdir(parents=True)
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("hello")
    (folder / "cut.png").write_bytes(picture.read_bytes()[:500])
    (folder / "bomb.png").write_bytes(bomb())
    Image.new("RGB", (1, 20_000)).save(folder / "strip.png")
    os.mkfifo(folder / "pipe.png")
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.png", ["no picture", "check the path"]),
        ("n" * 300, ["name too long"]),
        ("folder.png", ["not a file"]),
        ("pipe.png", ["not a file"]),
        ("empty.png", ["is empty", "0 bytes"]),
        ("text.png", ["no picture", "PNG, JPEG, WebP, GIF or BMP"]),
        ("cut.png", ["cut off"]),
        ("bomb.png", ["too many pixels", "at most 64 million"]),
        ("strip.png", ["1×20000", "more than 100 times"]),
    ],
)
def test_pictures_that_cannot_be_used(command, toy_model, picture, bad_pictures, name, words):
    path = bad_pictures / name
    words = [*words, str(path)[:100]]
    command.fails(2, words, "caption", toy_model, picture, path)
    command.fails(2, words, "ask", toy_model, path, "how many circles?")
    command.fails(2, words, "edit", toy_model, path, "make it red")
    command.fails(2, words, "infill", toy_model, path, "--box", "0,0,8,8")
    command.fails(2, words, "infill", toy_model, picture, "--mask", path)


def test_a_picture_that_nobody_may_read(command, toy_model, tmp_path):
    (tmp_path / "secret.png").touch(mode=0o000)
    if os.access(tmp_path / "secret.png", os.R_OK):
        pytest.skip("root may read everything")
    command.fails(2, ["secret.png", "Permission denied"], "caption", toy_model, tmp_path / "secret.png")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["is empty", "in words"]),
        (" \n", ["is empty"]),
        (NO_UNICODE, ["not valid Unicode", "UTF-8"]),
        ("a red circle " * 60, ["do not fit", "context of 160", "shorten"]),
    ],
)
def test_texts_that_cannot_be_used(command, toy_model, picture, text, words):
    length = "do not fit" in words
    command.fails(2, words if length else ["prompt", *words], "generate", toy_model, text)
    command.fails(2, words if length else ["question", *words], "ask", toy_model, picture, text)
    command.fails(2, words if length else ["instruction", *words], "edit", toy_model, picture, text)
    infill = ("infill", toy_model, picture, "--box", "0,0,8,8", "--prompt", text)
    command.fails(2, words if length else ["prompt", *words], *infill)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-n", "0"], ["'-n'", "greater than or equal to 1", "got '0'"]),
        (["-n=-3"], ["'-n'"]),
        (["-n", "many"], ["'-n'", "integer", "got 'many'"]),
        (["--best-of", "0"], ["--best-of", "1"]),
        (["--retrieve", "-1"], ["--retrieve", "0"]),
        (["--seed", "-1"], ["--seed", "got '-1'"]),
        (["--seed", "x"], ["--seed", "integer"]),
        (["--guidance", "nan"], ["guidance", "at least 0", "nan"]),
        (["--guidance=-1"], ["guidance", "at least 0"]),
        (["--guidance", "inf"], ["guidance", "inf"]),
        (["--temperature", "nan"], ["temperature", "nan"]),
        (["--temperature=-0.5"], ["temperature", "at least 0", "-0.5"]),
        (["--top-p", "0"], ["top_p", "(0, 1]"]),
        (["--top-p", "1.5"], ["top_p", "1.5"]),
        (["--top-p", "nan"], ["top_p", "nan"]),
        (["--top-k=-1"], ["top_k", "at least 0"]),
        (["--strategy", "guidence"], ["unknown strategy 'guidence'", "did you mean 'guidance'?"]),
        (["--strategy", "nowhere:Thing"], ["nowhere:Thing", "cannot be imported"]),
        (["--strategy", "json:loads"], ["json:loads", "no strategy"]),
        (["--strategy", "plain", "--guidance", "3"], ["'plain' does not take", "none"]),
        (["--strategy", "contrastive", "--guidance", "3"], ["'contrastive' does not take guidance", "--option"]),
        (["--rerank", "nonsense"], ["rerank is 'nonsense'", "'encoder', 'likelihood'"]),
        (["--strategy", "contrastive", "--option", "kk=3"], ["'kk'", "k, alpha, scale, drop"]),
        (["--strategy", "contrastive", "--option", "k=abc"], ["'k'", "integer", "'abc'"]),
        (["--strategy", "contrastive", "--option", "k=1.5"], ["'k'", "integer", "1.5"]),
        (["--strategy", "contrastive", "--option", "alpha=2"], ["alpha", "(0, 1]"]),
        (["--option", "k"], ["'k'", "name=value"]),
        (["--temprature", "1"], ["No such option", "--temperature"]),
    ],
)
def test_options_out_of_range(command, toy_model, tmp_path, options, words):
    command.fails(2, words, "generate", toy_model, "a red circle", *options)
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--temperature", "nan"], ["temperature", "nan"]), (["--guidance=-1"], ["guidance", "at least 0"])],
)
def test_a_chat_with_options_out_of_range_does_not_begin(command, toy_model, options, words):
    command.fails(2, words, "chat", toy_model, *options)


@pytest.mark.parametrize(
    ("region", "words"),
    [
        ([], ["mask or a box"]),
        (["--box", "0,0,99,8"], ["0,0,99,8", "24×24"]),
        (["--box", "0,0,0,0"], ["x0 < x1"]),
        (["--box", "9,9,3,3"], ["x0 < x1"]),
        (["--box", "-1,0,5,5"], ["-1,0,5,5", "24×24"]),
        (["--box", "1,2,3"], ["'1,2,3'", "x0,y0,x1,y1"]),
        (["--box", "a,b,c,d"], ["whole numbers"]),
        (["--box", ""], ["whole numbers"]),
        (["--mask", "small.png"], ["10×10", "24×24"]),
        (["--mask", "nothing.png"], ["marks nothing"]),
        (["--mask", "all.png"], ["covers the whole picture"]),
        (["--mask", "all.png", "--box", "0,0,8,8"], ["both a mask and a box"]),
        ([], ["needs a region"]),
    ],
)
def test_regions(command, toy_model, picture, tmp_path, region, words):
    Image.new("L", (10, 10), 255).save(tmp_path / "small.png")
    Image.new("L", (24, 24), 0).save(tmp_path / "nothing.png")
    Image.new("L", (24, 24), 255).save(tmp_path / "all.png")
    command.fails(2, words, "infill", toy_model, picture, *region)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ([], ["neither text nor a picture"]),
        (["--text", " "], ["query text is empty"]),
        (["--text", NO_UNICODE], ["not valid Unicode"]),
        (["--image", "none.png"], ["no picture at none.png"]),
        (["--text", "x", "--k", "0"], ["--k", "got '0'"]),
    ],
)
def test_searches(command, toy_model, query, words):
    command.fails(2, words, "retrieval", "search", toy_model, *query)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], ["No such command 'nonsense'", "cm3 --help"]),
        (["retrieval", "serch"], ["serch", "cm3 retrieval --help"]),
        (["generate"], ["'model'", "cm3 generate --help"]),
        (["list", "task"], ["unknown kind 'task'", "tasks"]),
        (["list", "tasks", "more"], ["more"]),
        (["quickstart", "--minutes", "nan"], ["--minutes", "nan"]),
        (["quickstart", "--minutes", "1e9"], ["--minutes", "1440"]),
        (["quickstart", "--seed", "-2"], ["--seed", "-2"]),
        (["vqgan", "eval", "x", "y", "-n", "-1"], ["--limit", "-1"]),
        (["sft", "preview", ".", "--task", "nope"], ["unknown task 'nope'", "captioning"]),
        (["sft", "data", "check", ".", "--format", "nope"], ["unknown data format 'nope'", "pairs"]),
        (["tokenize", "x", "y", "--image-tokenizer", "z", "--budget", "nan"], ["--budget", "between 0 and 1"]),
        (["tokenize", "x", "y", "--image-tokenizer", "z", "--tokenizer", "t", "--text-vocab-size", "300"], ["leave out one"]),
        (["vqgan", "convert", "x", "y", "--to", "taming", "--from", "janus"], ["leave --from out"]),
        (["vqgan", "convert", "x", "y", "--to", "taming", "--image-size", "7"], ["--image-size", "leave it out with --to"]),
        (["vqgan", "convert", "x", "y", "--from", "lpips", "--lins", "z", "--image-size", "7"], ["leave it out with --to"]),
    ],
)
def test_usage(command, arguments, words):
    command.fails(2, words, *arguments)


@pytest.mark.parametrize("group", [[], ["vqgan"], ["retrieval"], ["sft"], ["sft", "data"]])
def test_a_group_alone_shows_its_commands(command, group):
    done = command(*group)
    assert (done.code, done.out) == (2, "")
    assert "Commands:" in done.err
    assert "error" not in done.err


RUN = 'data = "pictures"\nout = "tokenizer"\npreset = "quickstart"\nimage_size = 24\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = = b", ["not valid TOML"]),
        (b"\xff\xfe", ["not UTF-8"]),
        ("", ["`data` and `out`"]),
        (RUN + "imagesize = 3", ["unknown key 'imagesize'", "did you mean 'image_size'"]),
        (RUN + "[train]\nstepz = 3", ["'train.stepz'", "did you mean 'steps'"]),
        (RUN + "[train]\nsteps = 'many'", ["'train.steps'", "integer", "'many'"]),
        (RUN + "[train]\nsteps = 0", ["'train.steps'", "greater than or equal to 1", "got 0"]),
        (RUN + "[train]\nlearning_rate = nan", ["'train.learning_rate'", "nan"]),
        (RUN + "[train]\nbetas = [2, 3]", ["betas must lie in [0, 1)"]),
        (RUN + "draft = true\n[loss]\nregion_emphasis = 4", ["draft=true", "loss.region_emphasis", "leave out one"]),
        (RUN + "[loss]\nlpips_weights = 'w'", ["lpips_weights go with perceptual 'lpips', got 'none'"]),
        (RUN + "train = 3", ["'train'", "section", "got 3"]),
        (RUN.replace("24", "25"), ["25 is not a multiple"]),
        (RUN.replace("24", "99999999"), ["'image_size'", "4096"]),
        (RUN.replace("quickstart", "quickstat"), ["'quickstat'", "quickstart"]),
    ],
)
def test_run_files(command, pictures, tmp_path, text, words):
    pictures("pictures", 1)
    run = tmp_path / "run.toml"
    run.write_bytes(text if isinstance(text, bytes) else text.encode())
    command.fails(2, words, "vqgan", "train", run)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["pictures", "run.toml"]


def test_run_files_that_are_none_and_overrides(command, tmp_path):
    (tmp_path / "run.toml").write_text(RUN)
    command.fails(2, ["none.toml", "does not exist"], "train", "none.toml")
    command.fails(2, ["Is a directory"], "sft", "train", tmp_path)
    command.fails(2, ["'steps'", "key.path=value"], "vqgan", "train", "run.toml", "steps")
    command.fails(2, ["unknown key 'trian'", "did you mean 'train'"], "vqgan", "train", "run.toml", "trian.steps=3")
    command.fails(2, ["nothing at pictures"], "vqgan", "train", "run.toml")
    command.fails(2, ["unknown key 'data'"], "sft", "train", "run.toml")
    (tmp_path / "tune.toml").write_text('model = "m"\nout = "o"\n[[mixture]]\ntask = "vqaa"\ndata = "x"\n')
    command.fails(2, ["unknown task 'vqaa'", "did you mean 'vqa'"], "sft", "train", "tune.toml")
    (tmp_path / "pretrain.toml").write_text('tokens = "t"\ntokenizer = "x"\nout = "o"\n')
    command.fails(4, ["x/token_layout.json is missing"], "train", "pretrain.toml")


DATA_COMMANDS = {
    "quickstart": ["quickstart", "--data", "data", "--out", "made"],
    "build": ["retrieval", "build", "data", "made", "--encoder", "hashing"],
    "tokenize": ["tokenize", "data", "made", "--image-tokenizer", "IMAGE_TOKENIZER", "--text-vocab-size", "300"],
    "vqgan": ["vqgan", "train", "run.toml", "data=data", "out=made"],
}


def no_captions(folder: Path) -> None:
    for file in folder.glob("*.txt"):
        file.unlink()


def no_utf8(folder: Path) -> None:
    for file in folder.glob("*.txt"):
        file.write_bytes(b"caf\xe9")


def no_words(folder: Path) -> None:
    for file in folder.glob("*.txt"):
        file.write_text(" \n")


def no_pictures(folder: Path) -> None:
    for file in folder.glob("*.png"):
        file.write_bytes(b"junk")


def nothing(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def some_junk(folder: Path) -> None:
    (folder / "00.png").write_bytes(b"junk")


@pytest.mark.parametrize("name", DATA_COMMANDS)
@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (nothing, 2, ["data is empty"]),
        (no_utf8, 3, ["20 of 20", "text_not_utf8 20", "00.png"]),
        (no_words, 3, ["20 of 20", "empty_text 20"]),
        (no_pictures, 3, ["20 of 20", "not_an_image 20"]),
        (some_junk, 3, ["1 of 20", "not_an_image 1", "00.png", "repair"]),
    ],
)
def test_data_that_cannot_be_used(command, pictures, toy_model, tmp_path, name, spoil, code, words):
    spoil(pictures("data"))
    (tmp_path / "run.toml").write_text(RUN)
    arguments = [str(toy_model / "image_tokenizer") if word == "IMAGE_TOKENIZER" else word for word in DATA_COMMANDS[name]]
    command.fails(code, words, *arguments)
    left = {entry.name for entry in tmp_path.iterdir()} - {"data", "run.toml"}
    assert left <= {"made"} if name == "quickstart" else not left  # the quickstart leaves its settings, nothing made
    assert not (tmp_path / "made" / "data").exists()


def test_too_little_data(command, pictures, toy_model, tmp_path):
    pictures("one", 1)
    command.fails(2, ["1 usable pairs", "at least 16"], "quickstart", "--data", "one", "--out", "q")
    no_captions(pictures("bare"))
    command.fails(3, ["missing_text 20"], "quickstart", "--data", "bare", "--out", "q")
    command.fails(2, ["has a text"], "tokenize", "bare", "t", "--image-tokenizer", toy_model / "image_tokenizer")
    command.fails(2, ["at least 2 pairs"], "retrieval", "eval", toy_model / "encoder", "one")
    command.fails(3, ["missing_text 20"], "eval", toy_model, "bare", "--task", "text_to_image")
    command.fails(2, ["'00'", "embedded world"], "eval", toy_model, "one", "--task", "captioning")
    command.fails(2, ["none does not exist"], "quickstart", "--data", "none", "--out", "q2")
    command.fails(2, ["one/00.png is a single picture"], "retrieval", "build", "one/00.png", "m")
    assert not (tmp_path / "q2").exists()


def test_results_do_not_go_among_the_data(command, pictures, tmp_path):
    data = pictures("data")
    before = sorted(data.iterdir())
    command.fails(2, ["--out data is the folder of --data"], "quickstart", "--data", "data", "--out", "data")
    for arguments in (["retrieval", "build", "data", "data", "--encoder", "hashing"], ["vqgan", "train", "run.toml", "out=data"]):
        (tmp_path / "run.toml").write_text(RUN)
        command.fails(5, ["not replaced", "choose another place"], *arguments)
    assert sorted(data.iterdir()) == before


def test_results_below_the_data_are_no_data(pictures):
    from cm3.documents import read_documents
    from cm3.quickstart.road import source_state

    data = pictures("data")
    before, state = [document.id for document in read_documents(data)], source_state(data)
    (data / "quickstart" / "tokenizer-run").mkdir(parents=True)
    (data / "quickstart" / "run.lock").touch()
    (data / "quickstart" / "tokenizer-run" / "step.png").write_bytes((data / "00.png").read_bytes())
    assert [document.id for document in read_documents(data)] == before
    assert source_state(data) == state


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/none", "n" * 300])
def test_places_that_cannot_be_written(command, pictures, toy_model, picture, tmp_path, out):
    pictures("data", 2)
    (tmp_path / "file").write_text("precious")
    words = [out[:4], "choose another place"]
    command.fails(5, words, "generate", toy_model, "a red circle", "--out", out)
    command.fails(5, words, "edit", toy_model, picture, "make it red", "--out", out)
    command.fails(5, words, "quickstart", "--out", out)
    command.fails(5, words, "retrieval", "build", "data", out, "--encoder", "hashing")
    command.fails(5, words, "retrieval", "search", toy_model, "--text", "x", "--grid", f"{out}/grid.png")
    assert (tmp_path / "file").read_text() == "precious"


def process(*arguments: str | Path, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "cm3.cli", *map(str, arguments)]
    return subprocess.run(line, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=120)


def test_as_processes(toy_model, bad_pictures):
    done = process("caption", toy_model, bad_pictures / "bomb.png")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("cm3: error: ")
    with open("/dev/full", "w") as full:
        done = process("list", "tasks", stdout=full.fileno())
    assert (done.returncode, done.stderr.count("\n")) == (5, 1)
    assert "no space left" in done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    done = process("list", "tasks", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
