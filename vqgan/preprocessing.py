"""Pictures to pixels and back: one function for training, evaluation and inference, so that none crops differently.

An array is an upright RGB picture, uint8 (3, Y, X); pixels are float32 (B, 3, Y, X) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
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
# what torch scales in bytes, several times faster than Pillow; it has the Lanczos filter since 2.12
_VECTORIZED = {"bicubic"} | ({"lanczos"} if hasattr(torch.ops.aten, "_upsample_lanczos2d_aa") else set())


def fit_map(values: Image.Image, size: int, config: PreprocessConfig) -> np.ndarray:
    """A map of mode "F" over a picture → (size, size) float32 over the fitted picture; 0 where the picture was padded."""
    width, height = _scaled_size(values, size, config)
    fitted = np.zeros((size, size), np.float32)
    inside = _inside(size, width, height)
    fitted[inside] = np.asarray(_cut(values, config).resize((width, height), Image.Resampling.BOX))
    return fitted


def fitted_array(image: Image.Image, size: int, config: PreprocessConfig) -> np.ndarray:
    """A picture as `decode_image` returns it → (3, size, size) uint8, fitted as `config` says.

    Pixels are those of Pillow's `resize`, up to 1 or 2 where torch scales (it rounds the filter's weights to 16 bits).
    """
    if image.size == (size, size):
        return _channels_first(image)
    width, height = _scaled_size(image, size, config)
    scaled = _scaled(_cut(image, config), (width, height), config.resample)
    if (width, height) == (size, size):
        return scaled
    fitted = np.empty((3, size, size), np.uint8)
    fitted[:] = np.array(config.background, np.uint8)[:, None, None]
    fitted[:, *_inside(size, width, height)] = scaled
    return fitted


def _cut(image: Image.Image, config: PreprocessConfig) -> Image.Image:
    """The middle square, in whole pixels, if `config` crops; nothing outside it leaks into what is scaled."""
    if config.fit != "crop" or image.width == image.height:
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _scaled_size(image: Image.Image, size: int, config: PreprocessConfig) -> tuple[int, int]:
    """(width, height) to which a picture is scaled; less than `size` on one side only where it is padded."""
    if config.fit != "pad":
        return size, size
    longest = max(image.size)
    width, height = (max(1, round(side * size / longest)) for side in image.size)
    return width, height


def _inside(size: int, width: int, height: int) -> tuple[slice, slice]:
    """Rows and columns of a square of `size` that a centered picture of width × height covers."""
    top, left = (size - height) // 2, (size - width) // 2
    return slice(top, top + height), slice(left, left + width)


def _scaled(image: Image.Image, size: tuple[int, int], resample: str) -> np.ndarray:
    """RGB picture → (3, Y, X) uint8 of `size` (X, Y)."""
    if image.size == size or resample not in _VECTORIZED:
        return _channels_first(image.resize(size, _RESAMPLE[resample]))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # (1, 3, Y, X), channels last
    scaled = F.interpolate(pixels, size[::-1], mode=resample, antialias=True)
    return np.ascontiguousarray(scaled[0].numpy())


def _channels_first(image: Image.Image) -> np.ndarray:
    """RGB picture → (3, Y, X) uint8."""
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def to_pixels(arrays: Tensor) -> Tensor:
    """(B, 3, Y, X) uint8 → float32 in [-1, 1]."""
    return arrays.float().div_(127.5).sub_(1.0)


def images_to_pixels(images: Sequence[Image.Image], size: int, config: PreprocessConfig) -> Tensor:
    """Pictures from anywhere → pixels (B, 3, size, size); no pictures give (0, 3, size, size). Raises `ImageError`."""
    if not images:
        return torch.empty(0, 3, size, size)
    return to_pixels(torch.from_numpy(np.stack([fitted_array(decode_image(image), size, config) for image in images])))


def pixels_to_arrays(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, Y, X) in [-1, 1], rounded and clamped → (B, Y, X, 3) uint8 on the CPU."""
    levels = ((pixels.detach().float() + 1.0) * 127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def pixels_to_images(pixels: Tensor) -> list[Image.Image]:
    """Pixels (B, 3, Y, X) → RGB pictures."""
    return [Image.fromarray(array) for array in pixels_to_arrays(pixels).numpy()]
