"""Pictures to look at: originals above their reconstructions, and the worst and the best of many."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor

from vqgan.preprocessing import pixels_to_arrays


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


class Extremes:
    """Keeps the `count` worst and the `count` best of many pairs, so that a long evaluation needs no memory for the rest."""

    def __init__(self, count: int = 8) -> None:
        self.count = count
        self._scores = torch.empty(0)
        self._pairs: Tensor | None = None  # (N, 2, 3, Y, X), at most 2 · count of them, worst first

    def see(self, originals: Tensor, reconstructions: Tensor, scores: Tensor) -> None:
        """Pairs (B, 3, Y, X) in [-1, 1] and their scores (B,), higher is better."""
        pairs = torch.stack([originals, reconstructions], 1)
        pairs = pairs if self._pairs is None else torch.cat([self._pairs, pairs])
        scores = torch.cat([self._scores, scores])
        order = scores.argsort(stable=True)
        if len(order) > 2 * self.count:
            order = torch.cat([order[: self.count], order[-self.count :]])
        self._scores, self._pairs = scores[order], pairs[order]

    def picture(self) -> Image.Image:
        """The worst from left to right, then the best, the very best last."""
        if self._pairs is None:
            raise ValueError("no pairs were seen")
        return comparison_picture(self._pairs[:, 0], self._pairs[:, 1], columns=self.count)
