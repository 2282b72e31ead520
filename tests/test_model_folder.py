"""The model folder: what is put together comes back the same, and parts of different models are refused by name."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from cm3.core import artefact
from cm3.core.errors import ArtefactError, InputError
from cm3.model.presets import create_model, preset
from cm3.model_folder import Parts, assemble_model_folder, open_model_folder
from cm3.tokens import BPETextTokenizer, DocumentTokenizer, vocab_for
from vqgan.config import VQConfig
from vqgan.model import VQModel
from vqgan.tokenizer import VQTokenizer

CORPUS = ["a red circle", "a blue square", "how many circles?"]


def save_image_tokenizer(folder, seed=0, codebook_size=32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = VQConfig(image_size=16, downsample_factor=8, codebook_size=codebook_size, codebook_dim=8)
        return VQTokenizer(VQModel(config)).save(folder)


def language_model(codebook_size=32, corpus=CORPUS, seed=0):
    text = BPETextTokenizer.train(corpus, 280)
    vocab = vocab_for(text, codebook_size, (2, 2))
    config = preset(
        "tiny", vocab_size=vocab.size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64,
        grid_embedding=True, grid_shape=vocab.grid_shape, image_start=vocab.image_start, image_stop=vocab.image_stop,
    )  # fmt: skip
    return create_model(config, seed), DocumentTokenizer(vocab, text)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A whole model folder, never to be written to."""
    root = tmp_path_factory.mktemp("model_folder")
    model, tokenizer = language_model()
    parts = Parts(image_tokenizer=save_image_tokenizer(root / "images"))
    return assemble_model_folder(root / "model", model, tokenizer, parts, {"steps": 3}, {"tasks.json": {}})


@pytest.fixture
def folder(made, tmp_path):
    """A copy of it to damage."""
    return shutil.copytree(made, tmp_path / "model")


def test_what_goes_in_comes_out(made):
    model, tokenizer = language_model()
    opened = open_model_folder(made)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), opened.model.state_dict().values()))
    assert not opened.model.training
    assert opened.tokenizer.fingerprint == tokenizer.fingerprint
    assert opened.tokenizer.image_tokenizer.codebook_size == 32
    assert opened.parts == Parts(image_tokenizer=made / "image_tokenizer")
    assert opened.manifest.provenance["steps"] == 3
    assert {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json"} <= {f.name for f in made.iterdir()}


def test_transformers_opens_it_too(made):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import cm3.model  # noqa: F401  (registers the architecture)

    assert AutoModelForCausalLM.from_pretrained(made).config.model_type == "cm3"
    assert AutoTokenizer.from_pretrained(made).decode(AutoTokenizer.from_pretrained(made)("a red circle").input_ids)


def test_a_flipped_byte_is_found(folder):
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"model\.safetensors"):
        open_model_folder(folder)
    open_model_folder(folder, verify=False)


@pytest.mark.parametrize("name", ["tokenizer.json", "image_tokenizer/config.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ArtefactError, match=name):
        open_model_folder(folder)


def test_a_missing_part_is_named(folder):
    shutil.rmtree(folder / "image_tokenizer")
    with pytest.raises(ArtefactError, match="image_tokenizer/ is missing"):
        open_model_folder(folder)


def test_the_image_tokenizer_of_another_model_is_refused(folder, tmp_path):
    shutil.rmtree(folder / "image_tokenizer")
    shutil.copytree(save_image_tokenizer(tmp_path / "other", seed=1), folder / "image_tokenizer")
    with pytest.raises(ArtefactError, match="do not belong together"):
        open_model_folder(folder)


def rewrite_manifest(folder):
    """Make the manifest agree with the files again, as someone would who mixes two models by hand."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["checksum"]
    manifest["files"] = {
        str(file.relative_to(folder)): {"size": file.stat().st_size, "sha256": artefact.hash_file(file)}
        for file in folder.rglob("*")
        if file.is_file() and file != folder / "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_the_text_tokenizer_of_another_model_is_refused(folder):
    language_model(corpus=["entirely other words here"])[1].save(folder)
    rewrite_manifest(folder)
    with pytest.raises(ArtefactError, match="document tokenizer .* do not belong together"):
        open_model_folder(folder)


def test_the_network_of_another_vocabulary_is_refused(folder):
    language_model(codebook_size=16)[0].save_pretrained(folder)
    rewrite_manifest(folder)
    with pytest.raises(ArtefactError, match="vocab_size=.*do not belong together"):
        open_model_folder(folder)


def test_parts_are_compared_before_anything_is_written(tmp_path):
    model, tokenizer = language_model()
    images = save_image_tokenizer(tmp_path / "images", codebook_size=64)
    with pytest.raises(ArtefactError, match="codebook_size=64"):
        assemble_model_folder(tmp_path / "model", model, tokenizer, Parts(image_tokenizer=images))
    with pytest.raises(ArtefactError, match="vocab_size"):
        assemble_model_folder(tmp_path / "model", language_model(codebook_size=64)[0], tokenizer, Parts())
    assert not (tmp_path / "model").exists()


def test_a_memory_of_another_encoder_is_refused(tmp_path):
    for name in ("one", "two"):
        with artefact.writing(tmp_path / name, "encoder") as encoder:
            artefact.write_json(encoder / "config.json", {"model_type": "clip", "name": name})
    from retrieval.encoders.fingerprint import encoder_fingerprint

    with artefact.writing(tmp_path / "memory", "memory") as memory:
        artefact.write_json(memory / "bank.json", {"encoder": encoder_fingerprint(tmp_path / "one")})
    model, tokenizer = language_model()
    with pytest.raises(ArtefactError, match="embedded with encoder"):
        parts = Parts(encoder=tmp_path / "two", memory=tmp_path / "memory")
        assemble_model_folder(tmp_path / "model", model, tokenizer, parts)
    parts = Parts(encoder=tmp_path / "one", memory=tmp_path / "memory")
    opened = open_model_folder(assemble_model_folder(tmp_path / "model", model, tokenizer, parts))
    assert opened.parts.memory == tmp_path / "model" / "memory"


def test_what_is_no_model_folder(tmp_path):
    with pytest.raises(InputError, match="no model folder"):
        open_model_folder(tmp_path / "none")
    with pytest.raises(ArtefactError, match=r"manifest\.json"):
        open_model_folder(tmp_path)
    with pytest.raises(ArtefactError, match="kind 'image_tokenizer'"):
        open_model_folder(save_image_tokenizer(tmp_path / "images"))


def test_a_model_of_the_hub(made, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []

    def snapshot(name, allow_patterns, local_files_only):
        asked.append((name, "image_tokenizer/config.json" in allow_patterns, local_files_only))
        return str(made)

    monkeypatch.setattr("cm3.model_folder.HfApi", lambda: SimpleNamespace(model_info=lambda name, timeout: name))
    monkeypatch.setattr("cm3.model_folder.hf_hub_download", lambda name, file, local_files_only: str(made / file))
    monkeypatch.setattr("cm3.model_folder.snapshot_download", snapshot)
    assert open_model_folder("someone/a-model").path == made
    monkeypatch.setattr("cm3.model_folder.HfApi", Unreachable)
    assert open_model_folder("someone/a-model").path == made  # the local copy
    assert asked == [("someone/a-model", True, False), ("someone/a-model", True, True)]
    (tmp_path / "someone").mkdir()
    with pytest.raises(InputError, match="no model folder at someone/a-model"):
        open_model_folder("someone/a-model")


def test_a_name_that_the_hub_does_not_know(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def unknown(name, file, local_files_only):
        raise OSError("404\nmore")

    monkeypatch.setattr("cm3.model_folder.HfApi", lambda: SimpleNamespace(model_info=lambda name, timeout: name))
    monkeypatch.setattr("cm3.model_folder.hf_hub_download", unknown)
    with pytest.raises(InputError, match=r"neither a folder nor a model folder on the hub \(404\); check the path"):
        open_model_folder("someone/nothing")
    monkeypatch.setattr("cm3.model_folder.HfApi", Unreachable)
    with pytest.raises(InputError, match="cannot be reached"):
        open_model_folder("someone/nothing")


class Unreachable:
    """The hub without a network."""

    def model_info(self, name, timeout):
        raise ConnectionError("Name or service not known")


def test_the_folder_around_a_model_folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "model")
    with pytest.raises(InputError, match=r"but .*/model is one; give that"):
        open_model_folder(tmp_path)
    with pytest.raises(InputError, match="no model folder at a a a"):
        open_model_folder("a " * 500)
