"""How good a tokenizer is: reconstruction error, use of the codebook, speed, and a picture to look at."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cm3.core.protocols import ImageTokenizer
from vqgan.preprocessing import pixels_to_arrays

_BATCH = 32


def evaluate(tokenizer: ImageTokenizer, images: Sequence[Image.Image], batch_size: int = _BATCH) -> dict[str, Any]:
    """Round trip of `images` through `tokenizer`.

    Returns {"images", "psnr_db", "ssim", "l1", "codes_used", "usage", "perplexity", "images_per_s", "comparison"}: means over
    pictures, `comparison` a picture of originals above reconstructions (the worst and the best by PSNR).
    """
    started = time.perf_counter()
    originals, reconstructions, codes = [], [], []
    for start in range(0, len(images), batch_size):
        pixels = tokenizer.preprocess(images[start : start + batch_size])
        part = tokenizer.encode(pixels)
        originals.append(pixels)
        reconstructions.append(tokenizer.decode(part).cpu())
        codes.append(part.cpu())
    seconds = time.perf_counter() - started
    before, after, all_codes = torch.cat(originals), torch.cat(reconstructions), torch.cat(codes)
    order = picture_psnr(before, after).argsort()
    shown = torch.cat([order[:8], order[-8:]]) if len(order) > 16 else order
    figures: dict[str, Any] = {"images": len(images), **reconstruction_metrics(before, after)}
    figures |= {name: float(value) for name, value in code_usage(all_codes, tokenizer.codebook_size).items()}
    figures |= {"images_per_s": len(images) / seconds, "comparison": comparison_picture(before[shown], after[shown])}
    return figures


def reconstruction_metrics(originals: Tensor, reconstructions: Tensor) -> dict[str, float]:
    """Means over pictures, both (B, 3, Y, X) in [-1, 1]."""
    return {
        "psnr_db": float(picture_psnr(originals, reconstructions).mean()),
        "l1": float((originals - reconstructions).abs().mean()),
    }


def picture_psnr(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratio in dB of every picture after rounding to 8 bits; 100 for identical ones."""
    before, after = pixels_to_arrays(originals).float(), pixels_to_arrays(reconstructions).float()
    error = (before - after).square().mean((1, 2, 3))
    return 10 * torch.log10(255.0**2 / error.clamp(min=255.0**2 * 1e-10))


def code_usage(codes: Tensor, codebook_size: int) -> dict[str, Tensor]:
    """How the codebook is used by `codes` (any shape): codes_used, usage (a share), perplexity; 0-d each."""
    counts = torch.bincount(codes.flatten(), minlength=codebook_size).float()
    share = counts / counts.sum()
    entropy = -torch.special.xlogy(share, share).sum()
    used = (counts > 0).sum()
    return {"codes_used": used.float(), "usage": used / codebook_size, "perplexity": entropy.exp()}


def comparison_picture(originals: Tensor, reconstructions: Tensor, columns: int = 8, gap: int = 2) -> Image.Image:
    """A white sheet of pairs, each original above its reconstruction; both (B, 3, Y, X) in [-1, 1]."""
    before, after = pixels_to_arrays(originals), pixels_to_arrays(reconstructions)
    count, height, width = before.shape[:3]
    columns = max(1, min(columns, count))
    rows = math.ceil(count / columns)
    sheet = torch.full((rows * (2 * height + 3 * gap) + gap, columns * (width + gap) + gap, 3), 255, dtype=torch.uint8)
    for index in range(count):
        row, column = divmod(index, columns)
        top, left = gap + row * (2 * height + 3 * gap), gap + column * (width + gap)
        sheet[top : top + height, left : left + width] = before[index]
        sheet[top + height + gap : top + 2 * height + gap, left : left + width] = after[index]
    return Image.fromarray(sheet.numpy())
