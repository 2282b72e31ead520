"""How good a tokenizer is: reconstruction error, use of the codebook, speed, and a picture to look at.

    pictures ──► preprocess ──► encode ──► decode ──► errors per picture, codes, what judges say ──► figures

Pictures stream through in batches, so that a whole validation set needs no memory.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from PIL import Image
from torch import Tensor

from cm3.core.errors import InputError
from cm3.core.protocols import ImageTokenizer
from cm3.metrics.codebook import code_counts, codebook_perplexity, codebook_usage
from cm3.metrics.images import psnr, ssim
from vqgan.judges import Judge
from vqgan.preprocessing import pixels_to_arrays
from vqgan.sheets import Extremes

_BATCH = 32
_MAX_PSNR_DB = 100.0  # what an identical picture counts, so that a mean over pictures stays finite
_SSIM_SIDE = 11  # SSIM's window; smaller pictures have none


def evaluate(
    tokenizer: ImageTokenizer,
    images: Iterable[Image.Image],
    batch_size: int = _BATCH,
    judges: Sequence[Judge] = (),
    extremes: Extremes | None = None,
) -> dict[str, float]:
    """Round trip of `images` through `tokenizer`, measured after its preprocessing.

    Returns {"images", "psnr_db", "ssim", "l1", "codes_used", "usage", "perplexity", "images_per_s", "encode_images_per_s",
    "decode_images_per_s"} and the figures of `judges` (`vqgan.judges.open_judges`): errors as means over pictures of 8 bits,
    rates of the network alone except the first, which includes preprocessing. `extremes` collects the worst and best by PSNR.
    Raises `InputError` without pictures.
    """
    counts = torch.zeros(tokenizer.codebook_size, dtype=torch.int64)
    errors: dict[str, list[Tensor]] = defaultdict(list)
    seconds = dict.fromkeys(("preprocess", "encode", "decode"), 0.0)
    for before, after, codes in _round_trips(tokenizer, images, batch_size, seconds):
        counts += code_counts(codes, tokenizer.codebook_size)
        measured = picture_errors(before, after)
        for name, values in measured.items():
            errors[name].append(values)
        for judge in judges:
            judge.see(before, after)
        if extremes is not None:
            extremes.see(before, after, measured["psnr_db"])
    if not errors:
        raise InputError("no pictures to evaluate on; give at least one")
    figures: dict[str, float] = {"images": sum(map(len, errors["psnr_db"]))}
    figures |= {name: float(torch.cat(values).double().mean()) for name, values in errors.items()}
    figures |= _usage(counts) | _rates(int(figures["images"]), seconds)
    for judge in judges:
        figures |= judge.figures()
    return figures


def worst_and_best(tokenizer: ImageTokenizer, images: Iterable[Image.Image], count: int = 8) -> Image.Image:
    """A sheet of the `count` worst and the `count` best reconstructions by PSNR, each original above its reconstruction."""
    extremes = Extremes(count)
    evaluate(tokenizer, images, extremes=extremes)
    return extremes.picture()


def reconstruction_metrics(originals: Tensor, reconstructions: Tensor) -> dict[str, float]:
    """ "psnr_db", "ssim" (where pictures are large enough) and "l1": means over pictures, both (B, 3, Y, X) in [-1, 1]."""
    return {name: float(values.double().mean()) for name, values in picture_errors(originals, reconstructions).items()}


def picture_errors(originals: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
    """The same per picture, (B,) each, after rounding to 8 bits."""
    before, after = _eight_bit(originals), _eight_bit(reconstructions)
    errors = {"psnr_db": psnr(after, before).clamp(max=_MAX_PSNR_DB)}
    if min(before.shape[-2:]) >= _SSIM_SIDE:
        errors["ssim"] = ssim(after, before)
    return errors | {"l1": (before - after).abs().mean((1, 2, 3)) * 2}


def codebook_metrics(codes: Tensor, codebook_size: int) -> dict[str, float]:
    """ "codes_used", "usage" (a share) and "perplexity" of `codes` (any shape)."""
    return _usage(code_counts(codes, codebook_size))


def _round_trips(
    tokenizer: ImageTokenizer, images: Iterable[Image.Image], batch_size: int, seconds: dict[str, float]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Originals and reconstructions, (B, 3, Y, X) in [-1, 1], and codes (B, h, w), on the CPU; adds up `seconds` by stage."""
    stream = iter(images)
    while batch := list(islice(stream, batch_size)):
        times = [time.perf_counter()]
        pixels = tokenizer.preprocess(batch)
        times.append(time.perf_counter())
        codes = tokenizer.encode(pixels)
        codes_here = codes.cpu()  # waits for the device, so that the time is the encoder's
        times.append(time.perf_counter())
        after = tokenizer.decode(codes).cpu()
        times.append(time.perf_counter())
        for name, started, ended in zip(seconds, times, times[1:]):
            seconds[name] += ended - started
        yield pixels.cpu(), after, codes_here


def _usage(counts: Tensor) -> dict[str, float]:
    usage = {"codes_used": float((counts > 0).sum()), "usage": codebook_usage(counts)}
    return usage | {"perplexity": codebook_perplexity(counts)}


def _rates(count: int, seconds: dict[str, float]) -> dict[str, float]:
    rates = {"images_per_s": count / max(sum(seconds.values()), 1e-9)}
    return rates | {f"{stage}_images_per_s": count / max(seconds[stage], 1e-9) for stage in ("encode", "decode")}


def _eight_bit(pixels: Tensor) -> Tensor:
    """Pixels as a picture file would hold them, (B, 3, Y, X) float in [0, 1], on the CPU."""
    return pixels_to_arrays(pixels).permute(0, 3, 1, 2).float() / 255
