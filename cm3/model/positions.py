"""Where a token stands: rotary factors for its place in the row, row and column vectors for its place in a picture.

Pure functions of positions and configuration. Rotary embedding: Su et al. 2021 (arXiv 2104.09864), half-split layout of
Llama. The additive row and column embedding is DALL-E's (Ramesh et al. 2021, arXiv 2102.12092, appendix B).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cm3.model.configuration import CM3Config


def rotary_factors(position_ids: Tensor, config: CM3Config, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Positions (B or 1, T) → cosines and signed sines (B or 1, T, 1, K), computed in float32 and cast to `dtype`.

    The first half of the sines carries a minus, so that `rotate` is one product and one fused multiply-add.
    """
    exponent = torch.arange(0, config.head_dim, 2, device=position_ids.device, dtype=torch.float32) / config.head_dim
    angle = position_ids[..., None, None].float() * config.rotary_base**-exponent  # (B, T, 1, K / 2)
    cosine, sine = angle.cos(), angle.sin()
    return torch.cat((cosine, cosine), dim=-1).to(dtype), torch.cat((-sine, sine), dim=-1).to(dtype)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + K / 2]) of every head by the angle of their position: (B, T, H, K) → same shape."""
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, dims=-1), sine)


def grid_table(rows: Tensor, columns: Tensor) -> Tensor:
    """Row vectors (h, D) and column vectors (w, D) → (1 + h · w, D): entry 0 is zero, entry 1 + r · w + c is their sum."""
    cells = (rows[:, None] + columns[None, :]).flatten(0, 1)  # (h · w, D)
    return F.pad(cells, (0, 0, 1, 0))


def grid_positions_of(input_ids: Tensor, config: CM3Config) -> Tensor:
    """Grid positions (B, T) of rows (B, T) in which every picture is one complete run of image ids in raster order.

    A token's place is its distance from the start of its run; a run longer than one picture starts over. Rows with
    moved or partial image spans (infilling) must be given their grid positions instead.
    """
    if config.image_start is None or config.image_stop is None or config.num_image_tokens is None:
        raise ValueError("grid_positions are missing, and the config lacks image_start, image_stop or grid_shape to derive them")
    is_image = (input_ids >= config.image_start) & (input_ids < config.image_stop)
    index = torch.arange(input_ids.shape[1], device=input_ids.device)
    before = torch.where(is_image, -1, index).cummax(dim=1).values  # (B, T) the last place that is no image token
    return torch.where(is_image, (index - before - 1) % config.num_image_tokens + 1, 0)
