"""Loading pictures: JPEG files to pixels of one size, against a loop over Pillow and against a torch DataLoader.

Exact rows decode whole pictures; no pixel may be further than 1 of 255 from the peers'. The draft row decodes JPEGs at a fraction
of their size, which is lossy: its gate is 35 dB against the exact pixels, and it counts processor time, one thread against one.
In the exact rows time is that on the wall, and each says how many threads ours runs; the DataLoader has two processes, with
batches enough for both. The limit is Pillow's decoding of whole pictures, in one thread.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import process_time

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import Row, interleaved, report, time_row
from cm3.core.seeding import numpy_generator
from cm3.documents.document import ImageSegment
from cm3.metrics.images import psnr
from vqgan.config import PreprocessConfig
from vqgan.loading import ordered_map, picture_array
from vqgan.preprocessing import to_pixels

COUNT, SIZE, SIDE, WORKERS, REPEATS = 16, (1024, 768), 256, 2, 3
NAME = f"{COUNT} JPEGs of {SIZE[0]} × {SIZE[1]} to {SIDE}²"


def write_photos(folder: Path) -> list[Path]:
    """JPEGs with the spectrum of photographs: noise whose amplitude falls with its frequency."""
    paths = []
    for number in range(COUNT):
        pixels = 128 + sum(weight * _noise(number, step) for step, weight in ((256, 60), (64, 30), (16, 12), (4, 4)))
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def _noise(number: int, step: int) -> np.ndarray:
    """Smooth noise with a value every `step` pixels, as large as a picture: (Y, X, 3) float32."""
    coarse = numpy_generator(0, "photo", number, step).normal(size=(3, SIZE[1] // step, SIZE[0] // step)).astype(np.float32)
    planes = [Image.fromarray(plane).resize(SIZE, Image.Resampling.BICUBIC) for plane in coarse]
    return np.stack([np.asarray(plane) for plane in planes], -1)


def ours(paths: list[Path], draft: bool, workers: int = WORKERS) -> Tensor:
    """(N, 3, SIDE, SIDE) in [-1, 1]."""
    load = partial(picture_array, size=SIDE, config=PreprocessConfig(), draft=draft)
    arrays = ordered_map(load, (ImageSegment(path=path) for path in paths), workers)
    return to_pixels(torch.from_numpy(np.stack(list(arrays))))


def pillow_pixels(path: Path) -> Tensor:
    """What a data set's `__getitem__` usually does."""
    left, top = ((length - min(SIZE)) // 2 for length in SIZE)
    with Image.open(path) as image:
        square = image.convert("RGB").crop((left, top, left + min(SIZE), top + min(SIZE)))
        fitted = square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(fitted, np.float32) / 127.5 - 1).permute(2, 0, 1)


class Photos(Dataset):
    """`pillow_pixels` behind the interface of a DataLoader."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return pillow_pixels(self.paths[index])


def exact_rows(paths: list[Path]) -> Iterator[Row]:
    """Whole pictures, against both peers."""
    loader = DataLoader(Photos(paths), batch_size=2, num_workers=WORKERS, persistent_workers=True)
    decoding = interleaved(lambda: [Image.open(path).load() for path in paths], lambda: None, REPEATS)[0]
    expected = torch.stack([pillow_pixels(path) for path in paths])
    apart = float((ours(paths, draft=False) - expected).abs().max()) * 127.5
    gate = "ok" if apart < 1.01 else f"{apart:.1f} of 255 apart"
    loop = partial(_loop, paths)
    peers: list[tuple[int, str, Callable[[], object]]] = [
        (1, "a Pillow loop", loop),
        (WORKERS, "a Pillow loop", loop),
        (WORKERS, f"a DataLoader of {WORKERS}", lambda: list(loader)),
    ]
    for workers, peer, action in peers:
        seconds = interleaved(partial(ours, paths, draft=False, workers=workers), action, REPEATS)
        threads = f"{workers} thread{'s' if workers > 1 else ''}"
        yield time_row(f"{NAME}, exact, {threads}, against {peer}", seconds, gate, round(decoding / seconds[0], 3))


def _loop(paths: list[Path]) -> list[Tensor]:
    return [pillow_pixels(path) for path in paths]


def draft_row(paths: list[Path]) -> Row:
    """Smaller decodings against a Pillow loop."""
    exact, draft = (ours(paths, draft=draft, workers=1) for draft in (False, True))
    decibels = float(psnr(draft, exact, 2.0).min())
    gate = "ok" if decibels >= 35 else f"{decibels:.1f} dB"
    seconds = interleaved(lambda: ours(paths, draft=True, workers=1), partial(_loop, paths), REPEATS, process_time)
    return time_row(f"{NAME}, 1 thread, draft (lossy, {decibels:.0f} dB), against a Pillow loop", seconds, gate)


def rows() -> Iterator[Row]:
    """The draft, then whole pictures against both peers."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder))
        yield draft_row(paths)
        yield from exact_rows(paths)


if __name__ == "__main__":
    report(rows, __doc__ or "")
