"""LPIPS on random weights against a transcription of its definition in NumPy-like steps, and its weight file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from cm3.core.errors import ArtefactError, InputError
from vqgan.conversion.lpips import convert_lpips
from vqgan.losses.lpips import LPIPS, load_lpips

Table = dict[str, torch.Tensor]
Seeded = Callable[[str, tuple[int, ...]], torch.Tensor]
TAPS = (3, 8, 15, 22, 29)  # the ReLUs 1_2, 2_2, 3_3, 4_3, 5_3 of torchvision's numbering
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
POOLS = (4, 9, 16, 23)


def _files(tmp_path: Path) -> tuple[Path, Path]:
    torch.manual_seed(0)
    state = {name: tensor for name, tensor in LPIPS().state_dict().items() if name.startswith("features.")}
    torch.save(state | {"classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg16.pth")
    widths = (64, 128, 256, 512, 512)
    torch.save({f"lin{k}.model.1.weight": torch.rand(1, width, 1, 1) for k, width in enumerate(widths)}, tmp_path / "vgg.pth")
    return tmp_path / "vgg16.pth", tmp_path / "vgg.pth"


def _reference(
    first: torch.Tensor, second: torch.Tensor, vgg: dict[str, torch.Tensor], lins: dict[str, torch.Tensor]
) -> torch.Tensor:
    shift, scale = torch.tensor([-0.030, -0.088, -0.188])[:, None, None], torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    features = []
    for picture in (first, second):
        x, taps = (picture - shift) / scale, []
        for layer in range(30):
            if layer in CONVOLUTIONS:
                x = F.relu(F.conv2d(x, vgg[f"features.{layer}.weight"], vgg[f"features.{layer}.bias"], padding=1))
            elif layer in POOLS:
                x = F.max_pool2d(x, 2, 2)
            if layer in TAPS:
                taps.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        features.append(taps)
    parts = []
    for number, (one, other) in enumerate(zip(*features)):
        parts.append(F.conv2d((one - other) ** 2, lins[f"lin{number}.model.1.weight"]).mean((1, 2, 3)))
    return torch.stack(parts).sum(0)


@torch.no_grad()
def test_distances_are_those_of_the_definition(tmp_path: Path) -> None:
    vgg, lins = _files(tmp_path)
    model = load_lpips(convert_lpips(vgg, lins, tmp_path / "lpips.safetensors"))
    first, second = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = _reference(first, second, torch.load(vgg, weights_only=True), torch.load(lins, weights_only=True))
    assert torch.allclose(model(first, second), expected, rtol=1e-4)
    assert torch.equal(model(first, first), torch.zeros(2))


@torch.no_grad()
def test_distances_are_those_of_the_package(tmp_path: Path, seeded_tensor: Seeded) -> None:
    """`lpips` 0.1 (richzhang/PerceptualSimilarity 082bb24), net="vgg", random weights. Its network loading asks torchvision for
    VGG16; the layers were built from the published list instead, outside of this repository, and filled by `seeded_tensor`."""
    vgg = {
        name: seeded_tensor(name, tuple(tensor.shape)) * (math.sqrt(2) if tensor.ndim > 1 else 1)
        for name, tensor in LPIPS().state_dict().items()
        if name.startswith("features.")
    }
    names = [(f"lin{number}.model.1.weight", width) for number, width in enumerate((64, 128, 256, 512, 512))]
    torch.save(vgg, tmp_path / "vgg16.pth")
    torch.save({name: seeded_tensor(name, (1, width, 1, 1)).abs() for name, width in names}, tmp_path / "vgg.pth")
    model = load_lpips(convert_lpips(tmp_path / "vgg16.pth", tmp_path / "vgg.pth", tmp_path / "lpips.safetensors"))
    first, other = (torch.tanh(seeded_tensor(name, (2, 3, 32, 32)) * math.sqrt(3 * 32 * 32)) for name in ("pixels", "others"))
    near = (first + 0.1 * other).clamp(-1, 1)
    assert torch.allclose(model(first, other), torch.tensor([0.1306905299425125, 0.12841424345970154]), rtol=0, atol=1e-6)
    assert torch.allclose(model(first, near), torch.tensor([0.0018142347689718008, 0.0018676795298233628]), rtol=0, atol=1e-7)


def test_regions_weigh_the_distance() -> None:
    torch.manual_seed(0)
    model = LPIPS()
    first, second = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    plain = model(first, second)
    assert torch.allclose(model(first, second, torch.full((1, 1, 32, 32), 7.0)), plain)
    second[..., 16:] = first[..., 16:]
    left, right = torch.ones(2, 1, 1, 32, 32)
    left[..., :16], right[..., 16:] = 9.0, 9.0
    assert float(model(first, second, left)) > 2 * float(model(first, second, right))


def test_features_that_are_all_zero_have_a_gradient() -> None:
    model, picture = LPIPS(), torch.rand(1, 3, 16, 16, requires_grad=True)
    torch.nn.init.constant_(model.features[0].bias, -1e3)  # type: ignore[arg-type]
    model(picture, torch.zeros(1, 3, 16, 16)).sum().backward()
    assert picture.grad is not None
    assert torch.isfinite(picture.grad).all()


def test_it_has_a_gradient_to_the_pictures_alone() -> None:
    model, picture = LPIPS(), torch.rand(1, 3, 16, 16, requires_grad=True)
    model(picture, torch.zeros(1, 3, 16, 16)).sum().backward()
    assert picture.grad is not None
    assert picture.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_wrong_files_are_named(tmp_path: Path) -> None:
    lins = _files(tmp_path)[1]
    with pytest.raises(ArtefactError, match=r"no tensor 'features\.0\.weight'"):
        convert_lpips(lins, lins, tmp_path / "x")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "vgg11.pth")
    with pytest.raises(ArtefactError, match="these are other weights"):
        convert_lpips(tmp_path / "vgg11.pth", lins, tmp_path / "x")
    with pytest.raises(InputError, match="no LPIPS weights at"):
        load_lpips(tmp_path / "missing")
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 16)
    with pytest.raises(ArtefactError, match="holds no LPIPS weights"):
        load_lpips(tmp_path / "broken.safetensors")


@pytest.mark.parametrize("file", [0, 1])
def test_weights_that_are_not_finite_are_not_converted(tmp_path: Path, file: int) -> None:
    files, name = _files(tmp_path), ("features.28.bias", "lin3.model.1.weight")[file]
    state = torch.load(files[file], weights_only=True)
    state[name].view(-1)[-1] = (math.nan, math.inf)[file]
    torch.save(state, files[file])
    with pytest.raises(ArtefactError, match=rf"{files[file].name}: {name} holds values that are not finite"):
        convert_lpips(*files, tmp_path / "lpips.safetensors")
    assert not (tmp_path / "lpips.safetensors").exists()
