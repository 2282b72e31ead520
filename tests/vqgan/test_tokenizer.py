"""The folder of a tokenizer: exact round trip, and a sentence for everything that can be wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vqgan
from cm3.core.artefact import write_json, writing
from cm3.core.errors import ArtefactError, UsageError
from vqgan.config import VQConfig
from vqgan.model import VQModel
from vqgan.tokenizer import KIND, VQTokenizer, from_pretrained

CONFIG = VQConfig(image_size=24, codebook_size=64, codebook_dim=8, network_options={"width": 16})


def _tokenizer() -> VQTokenizer:
    torch.manual_seed(0)
    return VQTokenizer(VQModel(CONFIG))


def _forged(path: Path, state: dict[str, torch.Tensor], config: dict[str, object] | None = None) -> Path:
    """A folder with a right manifest around whatever is put into it."""
    with writing(path, kind=KIND) as folder:
        write_json(folder / "config.json", config or CONFIG.model_dump(mode="json"))
        save_file(state, folder / "model.safetensors")
    return path


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    tokenizer = _tokenizer()
    loaded = vqgan.from_pretrained(tokenizer.save(tmp_path / "a", provenance={"by": "test"}))
    pixels = torch.rand(2, 3, 24, 24) * 2 - 1
    codes = tokenizer.encode(pixels)
    assert torch.equal(loaded.encode(pixels), codes)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))
    assert torch.equal(loaded.codebook, tokenizer.codebook)
    assert loaded.codebook.shape == (64, 8)
    assert loaded.config == tokenizer.config


def test_equal_tokenizers_give_equal_bytes(tmp_path: Path) -> None:
    first, second = (_tokenizer().save(tmp_path / name) for name in ("a", "b"))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = _tokenizer().save(tmp_path / "a") / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"model\.safetensors"):
        from_pretrained(tmp_path / "a")


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no such folder"):
        from_pretrained(tmp_path / "missing")


def test_weights_of_another_layout_name_the_differences(tmp_path: Path) -> None:
    state = load_file(_tokenizer().save(tmp_path / "a") / "model.safetensors")
    state["encoder.project.weight"] = state["encoder.project.weight"][:3].clone()
    state["surplus"] = torch.zeros(1)
    del state["quant_conv.bias"]
    with pytest.raises(
        ArtefactError, match=r"3 differences.*encoder\.project\.weight is \(3,.*quant_conv\.bias is missing.*surplus"
    ):
        from_pretrained(_forged(tmp_path / "b", state))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = load_file(_tokenizer().save(tmp_path / "a") / "model.safetensors")
    state["quant_conv.bias"][0] = float("nan")
    with pytest.raises(ArtefactError, match=r"quant_conv\.bias holds values that are not finite"):
        from_pretrained(_forged(tmp_path / "b", state))


def test_an_unknown_key_in_the_configuration_is_refused(tmp_path: Path) -> None:
    state = load_file(_tokenizer().save(tmp_path / "a") / "model.safetensors")
    with pytest.raises(UsageError, match="codebok_size"):
        from_pretrained(_forged(tmp_path / "b", state, {"codebok_size": 3}))


def test_the_package_names_what_it_has() -> None:
    assert all(getattr(vqgan, name) is not None for name in dir(vqgan))
    with pytest.raises(AttributeError, match="no attribute 'tran'"):
        vqgan.tran  # noqa: B018
