"""Pictures to pixels and back: one function for training, evaluation and inference, so that none crops differently.

An image is uint8 PIL RGB of any size; pixels are float32 (B, 3, Y, X) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from cm3.documents.images import decode_image
from vqgan.config import PreprocessConfig

_RESAMPLE = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}
# what torch scales in bytes; it has the Lanczos filter since 2.12
_VECTORIZED = {"bicubic"} | ({"lanczos"} if hasattr(torch.ops.aten, "_upsample_lanczos2d_aa") else set())


def fit_image(image: Image.Image, size: int, config: PreprocessConfig) -> Image.Image:
    """A picture from anywhere, of any size and mode → upright RGB of `size` × `size`; pixels of that size stay as they are.

    Raises `ImageError` (an `InputError`) for a picture that cannot be decoded.
    """
    return _fit_rgb(decode_image(image), size, config)


def fit_map(values: Image.Image, size: int, config: PreprocessConfig) -> np.ndarray:
    """A map of mode "F" over a picture → (size, size) float32 over the fitted picture; 0 where the picture was padded."""
    return np.asarray(_fitted(values, size, config.fit, Image.Resampling.BOX, 0.0))


def _fit_rgb(rgb: Image.Image, size: int, config: PreprocessConfig) -> Image.Image:
    return _fitted(rgb, size, config.fit, _RESAMPLE[config.resample], config.background)


def _fitted(image: Image.Image, size: int, fit: str, resample: Image.Resampling, background: Any) -> Image.Image:
    if image.size == (size, size):
        return image
    if fit == "stretch":
        return image.resize((size, size), resample)
    if fit == "pad":
        return ImageOps.pad(image, (size, size), resample, color=background)
    return ImageOps.fit(image, (size, size), resample)


def image_array(image: Image.Image) -> np.ndarray:
    """RGB picture → (3, Y, X) uint8."""
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def fitted_array(image: Image.Image, size: int, config: PreprocessConfig, draft: bool = False) -> np.ndarray:
    """A picture as `decode_image` returns it → (3, size, size) uint8, fitted as `config` says.

    `draft`: where torch can scale the bytes, it does, several times faster than Pillow; pixels may differ by 1 or 2.
    """
    if not (draft and _torch_can_scale(image, config)):
        return image_array(_fit_rgb(image, size, config))
    array = np.asarray(image)
    if config.fit == "crop":
        side = min(image.size)
        top, left = ((length - side) // 2 for length in array.shape[:2])
        array = array[top : top + side, left : left + side]
    pixels = torch.from_numpy(array.copy()).permute(2, 0, 1)[None]  # (1, 3, Y, X), channels last
    scaled = F.interpolate(pixels, (size, size), mode=config.resample, antialias=True)
    return np.ascontiguousarray(scaled[0].numpy())


def _torch_can_scale(image: Image.Image, config: PreprocessConfig) -> bool:
    """Whether the filter is one of torch's, and nothing is padded or cut through the middle of a pixel."""
    whole_pixels = config.fit == "stretch" or (config.fit == "crop" and (image.width - image.height) % 2 == 0)
    return config.resample in _VECTORIZED and whole_pixels


def to_pixels(arrays: Tensor) -> Tensor:
    """(B, 3, Y, X) uint8 → float32 in [-1, 1]."""
    return arrays.float().div_(127.5).sub_(1.0)


def images_to_pixels(images: Sequence[Image.Image], size: int, config: PreprocessConfig) -> Tensor:
    """Pictures from anywhere → pixels (B, 3, size, size); no pictures give (0, 3, size, size). Raises `ImageError`."""
    if not images:
        return torch.empty(0, 3, size, size)
    return to_pixels(torch.from_numpy(np.stack([image_array(fit_image(image, size, config)) for image in images])))


def pixels_to_arrays(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, Y, X) in [-1, 1], rounded and clamped → (B, Y, X, 3) uint8 on the CPU."""
    levels = ((pixels.detach().float() + 1.0) * 127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def pixels_to_images(pixels: Tensor) -> list[Image.Image]:
    """Pixels (B, 3, Y, X) → RGB pictures."""
    return [Image.fromarray(array) for array in pixels_to_arrays(pixels).numpy()]
