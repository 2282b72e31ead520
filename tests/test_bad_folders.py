"""Model folders that are damaged, incomplete or put together wrongly: refused with the name of what is wrong, exit code 4."""

from __future__ import annotations

import json
import shutil

import pytest

FILES = [
    "config.json",
    "encoder/config.json",
    "encoder/model.safetensors",
    "encoder/preprocessor_config.json",
    "encoder/tokenizer.json",
    "encoder/tokenizer_config.json",
    "generation_config.json",
    "image_tokenizer/config.json",
    "image_tokenizer/manifest.json",
    "image_tokenizer/model.safetensors",
    "memory/bank.json",
    "memory/content.npy",
    "memory/documents.jsonl",
    "memory/ids.json",
    "memory/manifest.json",
    "memory/offsets.npy",
    "memory/pictures.bin",
    "memory/vectors.npy",
    "model.safetensors",
    "tasks.json",
    "token_layout.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1
    path.write_bytes(content)


def test_the_list_is_complete(toy_model):
    present = {str(file.relative_to(toy_model)) for file in toy_model.rglob("*") if file.is_file()}
    assert present == {*FILES, "manifest.json"}


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_in_any_file(command, toy_copy, name):
    size = (toy_copy / name).stat().st_size
    flip(toy_copy / name, size // 2)
    part = name.split("/")[0]
    command.fails(4, [name], "verify", toy_copy)
    command.fails(4, [part], "generate", toy_copy, "a red circle")


def test_a_flipped_byte_in_the_manifest(command, toy_copy):
    original = (toy_copy / "manifest.json").read_bytes()
    for position in range(5, len(original), len(original) // 40):
        flip(toy_copy / "manifest.json", position)
        done = command("verify", toy_copy)
        harmless = done.code == 0 and json.loads((toy_copy / "manifest.json").read_bytes()) == json.loads(original)
        assert harmless or (done.code == 4 and done.err.count("cm3: error: ") == 1), (position, done)
        (toy_copy / "manifest.json").write_bytes(original)
    command.works("verify", toy_copy)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "memory/bank.json", "encoder/config.json"]
)
def test_a_missing_file(command, toy_copy, name):
    (toy_copy / name).unlink()
    command.fails(4, [name, "missing"], "verify", toy_copy)
    command.fails(4, [name.split("/")[0]], "generate", toy_copy, "a red circle")


@pytest.mark.parametrize("name", ["image_tokenizer", "encoder", "memory"])
def test_a_missing_part(command, toy_copy, name):
    shutil.rmtree(toy_copy / name)
    command.fails(4, [f"{name}/", "missing"], "generate", toy_copy, "a red circle")


def test_an_extra_file(command, toy_copy):
    (toy_copy / "memory" / ".DS_Store").touch()
    command.works("verify", toy_copy)
    (toy_copy / "memory" / "surplus").touch()
    for arguments in (["verify", toy_copy], ["generate", toy_copy, "a red circle"]):
        command.fails(4, ["memory/surplus", "remove it"], *arguments)


@pytest.fixture(scope="module")
def other_model(make_toy_model):
    """A model of another codebook size, whose parts are all others."""
    return make_toy_model(codebook_size=32, seed=1)


@pytest.mark.parametrize("name", ["image_tokenizer", "encoder", "memory"])
def test_a_part_of_another_model(command, toy_copy, other_model, name):
    shutil.rmtree(toy_copy / name)
    shutil.copytree(other_model / name, toy_copy / name)
    command.fails(4, [f"{name}/", "do not belong together"], "generate", toy_copy, "a red circle")


def test_the_network_of_another_model(command, toy_copy, other_model):
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(other_model / name, toy_copy / name)
    command.fails(4, ["config.json"], "generate", toy_copy, "a red circle")


def test_what_is_no_model_folder(command, toy_model, picture, tmp_path):
    command.fails(2, ["no model folder at none", "check the path"], "generate", "none", "x")
    command.fails(2, ["no model folder", picture.name], "generate", picture, "x")
    command.fails(2, ["no model folder at a red circle"], "generate", "a red circle " * 50, toy_model)
    command.fails(4, ["has no manifest.json"], "generate", tmp_path, "x")
    command.fails(2, [f"{toy_model} is one"], "generate", toy_model.parent, "x")
    command.fails(4, ["'image_tokenizer'", "expected a model folder"], "generate", toy_model / "image_tokenizer", "x")
    command.fails(4, ["no such folder"], "verify", "none")
    command.fails(4, ["it is a file"], "info", picture)
    command.fails(4, ["'model'", "expected 'image_tokenizer'"], "vqgan", "eval", toy_model, tmp_path)
    command.fails(4, ["no such folder"], "retrieval", "search", "none", "--text", "x")
    for content in ("", "{}", "[]", "[" * 100_000, '{"kind": 1, "files": 2, "versions": {}, "provenance": {}}'):
        (tmp_path / "manifest.json").write_text(content)
        command.fails(4, ["manifest.json"], "info", tmp_path)


def test_a_memory_without_its_encoder(command, toy_model, tmp_path):
    shutil.copytree(toy_model / "memory", tmp_path / "memory")
    command.fails(4, ["no encoder"], "retrieval", "search", "memory", "--text", "x")


def test_a_model_is_not_replaced_by_something_else(command, pictures, toy_copy):
    pictures("data")
    command.fails(5, ["kind 'model'", "'memory'"], "retrieval", "build", "data", toy_copy, "--encoder", "hashing")
    command.works("verify", toy_copy)
