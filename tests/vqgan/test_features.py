"""Feature networks: a script with the Inception export's face, folders of transformers, and everything that is neither."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from cm3.core.errors import ArtefactError, InputError
from vqgan.features import load_features

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


class _Export(nn.Module):
    """Mean and deviation of each channel, behind the signature of the Inception export."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        values = images.float().flatten(2)
        return torch.cat([values.mean(2), values.std(2)], 1) if return_features else values.mean(2)


class _Other(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (3, 3, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_the_export_is_called_for_its_features(tmp_path: Path, images: Tensor) -> None:
    torch.jit.script(_Export()).save(tmp_path / "inception.pt")
    network = load_features(tmp_path / "inception.pt")
    assert network.inception
    assert torch.allclose(network.features_of(images), _Export()(images, return_features=True))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_other_scripts_are_no_inception(tmp_path: Path) -> None:
    torch.jit.script(_Other()).save(tmp_path / "other.pt")
    with pytest.raises(ArtefactError, match="takes images, expected an argument return_features"):
        load_features(tmp_path / "other.pt")


def test_a_vision_model_gives_its_pooled_output(tmp_path: Path, images: Tensor) -> None:
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**SMALL, image_size=16, patch_size=8)).eval()
    model.save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}')
    network = load_features(tmp_path / "vit")
    assert (network.name, network.inception) == ("vit", False)
    unit = torch.nn.functional.interpolate(images.float() / 255, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = model(pixel_values=(unit - mean) / std).pooler_output
    assert torch.allclose(network.features_of(images), expected, atol=1e-6)


def test_a_two_tower_model_gives_its_image_embedding(tmp_path: Path, images: Tensor) -> None:
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": 10, "max_position_embeddings": 4}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={**SMALL, "image_size": 16, "patch_size": 8}, projection_dim=6))
    model.save_pretrained(tmp_path / "clip")
    assert load_features(tmp_path / "clip").features_of(images).shape == (3, 6)


def test_what_is_no_network_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no feature network at"):
        load_features(tmp_path / "missing.pt")
    (tmp_path / "words.pt").write_text("no script")
    with pytest.raises(ArtefactError, match="no TorchScript network"):
        load_features(tmp_path / "words.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match="no model that transformers can open"):
        load_features(tmp_path / "empty")
