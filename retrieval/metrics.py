"""How well pictures find their texts and texts their pictures: recall@k and mean reciprocal rank, beside chance.

Pure functions of two arrays of unit vectors, pair by pair. Pairs that share a text, or a picture, are right answers for each
other. Shape letters: N pairs, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cm3.metrics.ranking import mean_reciprocal_rank, recall_at_k


def recall_metrics(
    images: np.ndarray, texts: np.ndarray, image_keys: np.ndarray, text_keys: np.ndarray, at: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """ "image_to_text/recall_at_1" …, "image_to_text/mrr", the same for "text_to_image", and "chance_at_1" … of a random order.

    images, texts (N, E): unit vectors; image_keys, text_keys (N,): equal for equal contents. Equal scores count as misses.
    """
    scores = torch.from_numpy(images @ texts.T)  # (N images, N texts)
    right = torch.from_numpy((image_keys[:, None] == image_keys) | (text_keys[:, None] == text_keys))
    figures: dict[str, float] = {}
    for name, directed in (("image_to_text", scores), ("text_to_image", scores.T)):
        figures |= {f"{name}/recall_at_{k}": recall_at_k(directed, right, k) for k in at}
        figures[f"{name}/mrr"] = mean_reciprocal_rank(directed, right)
    figures |= {f"chance_at_{k}": min(1.0, k / len(images)) for k in at}
    return figures
