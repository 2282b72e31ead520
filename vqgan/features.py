"""Networks that turn pictures into features, for the Fréchet distance: the Inception export of the FID community, or a folder.

    file.pt    TorchScript of the Inception network that FID is defined on (`inception-2015-12-05.pt`, as StyleGAN, clean-fid and
               others pass it around): pictures (B, 3, Y, X) uint8 → (B, 2048), called with return_features=True
    folder     any vision model of transformers (CLIP, SigLIP, DINOv2, ViT …) with its `preprocessor_config.json`

Nothing is downloaded. A TorchScript file is a program: open only one that you trust. Only the Inception network gives what the
literature calls rFID.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cm3.core.artefact import read_json
from cm3.core.errors import ArtefactError, InputError

_PREPROCESSOR_FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class FeatureNetwork:
    """name: what to call it; inception: whether distances of its features are FIDs; features_of: pictures (B, 3, Y, X) uint8 →
    features (B, E) float."""

    name: str
    inception: bool
    features_of: Callable[[Tensor], Tensor]


def load_features(path: Path | str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The network in a TorchScript file or a transformers folder (see the module text), on `device`.

    Raises `InputError` when there is nothing at `path`, `ArtefactError` when it is no such network.
    """
    path = Path(path)
    if path.is_dir():
        return _from_folder(path, device)
    if path.is_file():
        return _from_script(path, device)
    raise InputError(f"there is no feature network at {path}; give the Inception export (.pt) or a folder of a vision model")


def _from_script(path: Path, device: torch.device | str) -> FeatureNetwork:
    try:
        with warnings.catch_warnings():  # TorchScript is deprecated, but this export has no other form
            warnings.simplefilter("ignore", DeprecationWarning)
            script = torch.jit.load(str(path), map_location=device).eval()
        arguments = {argument.name for argument in script.forward.schema.arguments}
    except (RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0][:150]
        raise ArtefactError(f"{path} is no TorchScript network ({reason}); give inception-2015-12-05.pt, or a folder") from None
    if "return_features" not in arguments:
        raise ArtefactError(
            f"{path} is not the Inception export: its forward takes {', '.join(sorted(arguments - {'self'}))}, expected an "
            "argument return_features; give inception-2015-12-05.pt, or a transformers folder for another network"
        )

    @torch.inference_mode()
    def features_of(images: Tensor) -> Tensor:
        return script(images.to(device), return_features=True).float()

    return FeatureNetwork("Inception", True, features_of)


def _from_folder(path: Path, device: torch.device | str) -> FeatureNetwork:
    from transformers import AutoModel

    try:
        model: Any = AutoModel.from_pretrained(str(path), local_files_only=True).eval().to(device)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:150]
        raise ArtefactError(
            f"{path} holds no model that transformers can open ({reason}); give a vision model's folder"
        ) from None
    size, mean, std = _preprocessing(path, model.config)

    @torch.inference_mode()
    def features_of(images: Tensor) -> Tensor:
        unit = F.interpolate(images.to(device).float() / 255, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        return _pooled(model, (unit - mean.to(device)) / std.to(device)).float()

    return FeatureNetwork(str(model.config.model_type), False, features_of)


def _preprocessing(path: Path, config: Any) -> tuple[int, Tensor, Tensor]:
    """Side of the pictures, mean and standard deviation (1, 3, 1, 1) that the model expects."""
    settings = read_json(path / _PREPROCESSOR_FILE) if (path / _PREPROCESSOR_FILE).is_file() else {}
    size = getattr(getattr(config, "vision_config", config), "image_size", None) or settings.get("size")
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    size = size[0] if isinstance(size, (list, tuple)) else size
    if not isinstance(size, int):
        raise ArtefactError(f"{path} says nowhere how large its pictures are; expected image_size in its config.json")
    mean, std = (torch.tensor(settings.get(key, [0.5] * 3)).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    return size, mean, std


def _pooled(model: Any, pixels: Tensor) -> Tensor:
    """(B, E): the image embedding of a two-tower model, else the pooled output, else the mean over positions."""
    if hasattr(model, "get_image_features"):
        output = model.get_image_features(pixel_values=pixels)
        return output if isinstance(output, Tensor) else output.pooler_output
    output = model(pixel_values=pixels)
    pooled = getattr(output, "pooler_output", None)
    return pooled.flatten(1) if pooled is not None else output.last_hidden_state.mean(1)
