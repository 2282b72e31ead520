"""Reranking by an encoder: how well each candidate picture fits the text it was made for (CM3Leon: the best of 8)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from retrieval.encoders import Encoder, load_encoder


class CLIPReranker:
    """Fulfils the protocol `Reranker`: the cosine similarity of text and picture in the space of `encoder`."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    @classmethod
    def from_folder(cls, path: Path | str, device: str = "cpu") -> CLIPReranker:
        """A reranker with the encoder in folder `path`; see `load_encoder`."""
        return cls(load_encoder(path, device))

    def score(self, text: str, images: Sequence[Image.Image]) -> Tensor:
        """(N,) float32 in [-1, 1], higher fits better."""
        query = self.encoder.encode_texts([text])  # (1, E)
        return torch.from_numpy(self.encoder.encode_images(images) @ query[0])
