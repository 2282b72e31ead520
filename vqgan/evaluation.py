"""How good a tokenizer is: reconstruction error, use of the codebook, speed, and a picture to look at."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from cm3.core.errors import InputError
from cm3.core.protocols import ImageTokenizer
from cm3.metrics.codebook import code_counts, codebook_perplexity, codebook_usage
from cm3.metrics.images import psnr, ssim
from vqgan.preprocessing import pixels_to_arrays

_BATCH = 32
_MAX_PSNR_DB = 100.0  # what an identical picture counts, so that a mean over pictures stays finite
_SSIM_SIDE = 11  # SSIM's window; smaller pictures have none


def evaluate(tokenizer: ImageTokenizer, images: Sequence[Image.Image], batch_size: int = _BATCH) -> dict[str, float]:
    """Round trip of `images` through `tokenizer`, measured after its preprocessing.

    Returns {"images", "psnr_db", "ssim", "l1", "codes_used", "usage", "perplexity", "images_per_s"}, the errors as means over
    pictures of 8 bits. Raises `InputError` without pictures.
    """
    if not images:
        raise InputError("no pictures to evaluate on; give at least one")
    started = time.perf_counter()
    before, after, codes = round_trip(tokenizer, images, batch_size)
    seconds = time.perf_counter() - started
    figures = {"images": len(images), **reconstruction_metrics(before, after)}
    return figures | codebook_metrics(codes, tokenizer.codebook_size) | {"images_per_s": len(images) / seconds}


def round_trip(
    tokenizer: ImageTokenizer, images: Sequence[Image.Image], batch_size: int = _BATCH
) -> tuple[Tensor, Tensor, Tensor]:
    """Originals and reconstructions, both (B, 3, Y, X) in [-1, 1], and codes (B, h, w); all on the CPU."""
    parts = []
    for start in range(0, len(images), batch_size):
        pixels = tokenizer.preprocess(images[start : start + batch_size])
        codes = tokenizer.encode(pixels)
        parts.append((pixels.cpu(), tokenizer.decode(codes).cpu(), codes.cpu()))
    originals, reconstructions, codes = (torch.cat(column) for column in zip(*parts))
    return originals, reconstructions, codes


def worst_and_best(tokenizer: ImageTokenizer, images: Sequence[Image.Image], count: int = 8) -> Image.Image:
    """A sheet of the `count` worst and the `count` best reconstructions by PSNR, each original above its reconstruction."""
    before, after, _ = round_trip(tokenizer, images)
    order = picture_psnr(before, after).argsort()
    shown = torch.cat([order[:count], order[-count:]]) if len(order) > 2 * count else order
    return comparison_picture(before[shown], after[shown], columns=count)


def reconstruction_metrics(originals: Tensor, reconstructions: Tensor) -> dict[str, float]:
    """ "psnr_db", "ssim" (where pictures are large enough) and "l1": means over pictures, both (B, 3, Y, X) in [-1, 1]."""
    figures = {"psnr_db": float(picture_psnr(originals, reconstructions).mean())}
    before, after = _eight_bit(originals), _eight_bit(reconstructions)
    if min(before.shape[-2:]) >= _SSIM_SIDE:
        figures["ssim"] = float(ssim(after, before).mean())
    return figures | {"l1": float((before - after).abs().mean()) * 2}


def picture_psnr(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratio in dB of every picture after rounding to 8 bits; 100 for identical ones."""
    return psnr(_eight_bit(reconstructions), _eight_bit(originals)).clamp(max=_MAX_PSNR_DB)


def codebook_metrics(codes: Tensor, codebook_size: int) -> dict[str, float]:
    """ "codes_used", "usage" (a share) and "perplexity" of `codes` (any shape)."""
    counts = code_counts(codes, codebook_size)
    usage = {"codes_used": float((counts > 0).sum()), "usage": codebook_usage(counts)}
    return usage | {"perplexity": codebook_perplexity(counts)}


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


def _eight_bit(pixels: Tensor) -> Tensor:
    """Pixels as a picture file would hold them, (B, 3, Y, X) float in [0, 1], on the CPU."""
    return pixels_to_arrays(pixels).permute(0, 3, 1, 2).float() / 255
