"""The CLIP encoder gives what transformers gives, and refuses folders whose parts do not belong together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cm3.core.artefact import writing
from cm3.core.errors import ArtefactError
from cm3.documents.document import Document
from retrieval.encoders import ENCODERS, Encoder, load_encoder
from retrieval.encoders.clip import load_clip
from retrieval.encoders.fingerprint import encoder_fingerprint


def test_every_encoder_is_registered_under_its_model_type(clip_folder: Path) -> None:
    encoder = load_encoder(clip_folder)
    assert isinstance(encoder, Encoder)
    assert encoder.kind == "clip"
    assert ENCODERS.get("clip") is load_clip


def test_vectors_equal_those_of_transformers(clip_folder: Path, pairs: list[Document]) -> None:
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(clip_folder)
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
    texts, images = [pair.text for pair in pairs], [pair.images[0].load() for pair in pairs]
    with torch.no_grad():
        theirs = model(
            **tokenizer(texts, padding=True, return_tensors="pt"),
            pixel_values=processor(images, return_tensors="pt")["pixel_values"],
        )
    ours = load_encoder(clip_folder)
    assert np.abs(ours.encode_texts(texts) - theirs.text_embeds.numpy()).max() <= 1e-5
    assert np.abs(ours.encode_images(images) - theirs.image_embeds.numpy()).max() <= 1e-5


def test_vectors_have_length_one_in_any_batch(clip_folder: Path, pairs: list[Document]) -> None:
    encoder = load_encoder(clip_folder)
    encoder.batch_size = 7
    texts = [pair.text for pair in pairs]
    together = encoder.encode_texts(texts)
    assert together.shape == (len(pairs), encoder.width)
    assert together.dtype == np.float32
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() < 1e-5
    assert np.abs(together[5] - encoder.encode_texts([texts[5]])[0]).max() < 1e-5
    assert encoder.encode_texts([]).shape == encoder.encode_images([]).shape == (0, encoder.width)


def test_a_text_longer_than_the_tower_is_cut(clip_folder: Path) -> None:
    assert np.isfinite(load_encoder(clip_folder).encode_texts(["red " * 500])).all()


def test_the_fingerprint_is_that_of_the_content(clip_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(clip_folder, copy)
    (copy / "README.md").write_text("notes")
    assert encoder_fingerprint(copy) == encoder_fingerprint(clip_folder)
    with writing(tmp_path / "artefact", "encoder") as folder:
        shutil.copytree(clip_folder, folder, dirs_exist_ok=True)
    assert load_encoder(tmp_path / "artefact").fingerprint == encoder_fingerprint(clip_folder)
    flip(copy / "model.safetensors")
    assert encoder_fingerprint(copy) != encoder_fingerprint(clip_folder)


def test_a_flipped_byte_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    with writing(tmp_path / "artefact", "encoder") as folder:
        shutil.copytree(clip_folder, folder, dirs_exist_ok=True)
    flip(tmp_path / "artefact" / "model.safetensors")
    with pytest.raises(ArtefactError, match=r"model\.safetensors"):
        load_encoder(tmp_path / "artefact")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_a_missing_part_is_named(name: str, clip_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(clip_folder, copy)
    (copy / name).unlink()
    with pytest.raises(ArtefactError, match=name.replace(".", r"\.")):
        load_encoder(copy)


@pytest.mark.parametrize(
    ("name", "section", "value", "message"),
    [
        ("config.json", "text_config", {"vocab_size": 270}, "tokenizer has"),
        ("preprocessor_config.json", "crop_size", {"height": 12, "width": 12}, "12×12"),
    ],
)
def test_parts_of_different_encoders_are_refused(
    name: str, section: str, value: dict, message: str, clip_folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(clip_folder, copy)
    settings = json.loads((copy / name).read_text())
    settings[section] = {**settings[section], **value}
    (copy / name).write_text(json.dumps(settings))
    if name == "config.json":  # weights of the smaller vocabulary, so that only the tokenizer is wrong
        model = CLIPModel(CLIPModel.config_class.from_pretrained(copy))
        model.save_pretrained(copy)
    with pytest.raises(ArtefactError, match=message):
        load_encoder(copy)


@pytest.mark.parametrize("content", ['{"model_type": "bert"}', "{}", "no json"])
def test_another_kind_of_folder_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ArtefactError):
        load_encoder(tmp_path)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_weights_in_another_format_are_refused_with_what_to_do(clip_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ArtefactError, match="no model.safetensors, .* write it again by save_pretrained"):
        load_encoder(folder)
