"""Starting a tokenizer from its training pictures instead of from noise.

The patch network gets the principal components of the patches; every learned codebook gets k-means centers of the
latents. Patches are counted first and weighted by a small power of their count, so that the few that make up most of a
picture (plain background) don't take codes from the many that make the difference.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cm3.core.seeding import numpy_generator
from vqgan.config import VQConfig
from vqgan.model import VQModel
from vqgan.networks import patch
from vqgan.pictures import Pictures
from vqgan.preprocessing import to_pixels
from vqgan.quantizers.quantizer import to_rows

_MAX_PATCHES = 100_000  # seen by the principal components
_POINTS_PER_CODE = 32  # seen by k-means
_COUNT_POWER = 0.25


def initialize_from_data(model: VQModel, pictures: Pictures, indices: np.ndarray, seed: int) -> None:
    """Set the projection (patch network) and the codebook of `model` from the pictures numbered `indices`."""
    sample = _sample(indices, model.config, seed)
    if isinstance(model.encoder, patch.PatchEncoder):
        patches, weights = distinct_patches(pictures, sample, model.config.downsample_factor)
        patch.initialize(_coders(model), patches, weights)
    latents, weights = _distinct_rows(_latents(model, pictures, sample))
    limit = _POINTS_PER_CODE * model.config.codebook_size
    if latents.shape[0] > limit:
        kept = torch.from_numpy(numpy_generator(seed, "codebook points").permutation(latents.shape[0])[:limit])
        latents, weights = latents[kept], weights[kept]
    model.quantizer.initialize(latents, weights, seed)


def distinct_patches(pictures: Pictures, indices: np.ndarray, factor: int) -> tuple[Tensor, Tensor]:
    """The different patches of the pictures (N, 3 * f * f) in [-1, 1], and their weights (N,)."""
    chunks = np.array_split(indices, max(1, len(indices) // pictures.at_once))
    patches = torch.cat([patch.split_patches(pictures.take(chunk), factor) for chunk in chunks])  # uint8
    rows, counts = _distinct(patches)
    return to_pixels(rows), counts


def _latents(model: VQModel, pictures: Pictures, indices: np.ndarray) -> Tensor:
    """(N, D) latents of all grid positions."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    with torch.no_grad():
        chunks = np.array_split(indices, max(1, len(indices) // pictures.at_once))
        rows = [to_rows(model.latents(to_pixels(pictures.take(chunk)).to(device))).cpu() for chunk in chunks]
    model.train(training)
    return torch.cat(rows)


def _distinct_rows(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Latents without repetitions up to rounding, and weights by how often each occurred."""
    scale = latents.abs().mean().clamp(min=1e-12)
    keys = (latents / scale * 1024).round().to(torch.int32)
    _, first, counts = np.unique(_as_bytes(keys.numpy()), return_index=True, return_counts=True)
    return latents[torch.from_numpy(first)], _weights(counts)


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    _, first, counts = np.unique(_as_bytes(rows.numpy()), return_index=True, return_counts=True)
    return rows[torch.from_numpy(first)], _weights(counts)


def _as_bytes(rows: np.ndarray) -> np.ndarray:
    """(N, D) → (N,) of opaque values, which sort many times faster than rows."""
    rows = np.ascontiguousarray(rows)
    return rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()


def _weights(counts: np.ndarray) -> Tensor:
    return torch.from_numpy(counts.astype(np.float32) ** _COUNT_POWER)


def _sample(indices: np.ndarray, config: VQConfig, seed: int) -> np.ndarray:
    """As many pictures as give `_MAX_PATCHES` patches."""
    height, width = config.grid_shape
    count = max(1, _MAX_PATCHES // (height * width))
    return np.sort(numpy_generator(seed, "initialization").permutation(indices)[:count])


def _coders(model: VQModel) -> patch.Coders:
    return patch.Coders(model.encoder, model.decoder, model.quant_conv, model.post_quant_conv)
