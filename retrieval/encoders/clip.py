"""CLIP as an encoder: any CLIP folder in the layout of transformers (arXiv:2103.00020), without torchvision.

    texts    → tokenizer.json → text tower   → projection → length 1
    pictures → Preprocessing  → vision tower → projection → length 1

Weights are read from safetensors only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers import CLIPModel
from transformers.utils import logging

from cm3.core.artefact import MANIFEST, verify
from cm3.core.errors import ArtefactError
from retrieval.encoders.fingerprint import encoder_fingerprint
from retrieval.encoders.preprocessing import Preprocessing
from retrieval.encoders.text import encode_padded, load_text_tokenizer


class ClipEncoder:
    """Fulfils `Encoder` with a CLIP model in evaluation mode.

    Parameters
    ----------
    model, tokenizer, preprocessing: the three parts of the folder.
    fingerprint: identity of the folder (see `encoder_fingerprint`).
    batch_size: items per forward pass; does not change the vectors beyond rounding.
    """

    def __init__(
        self, model: CLIPModel, tokenizer: Tokenizer, preprocessing: Preprocessing, fingerprint: str, batch_size: int = 64
    ) -> None:
        self.model, self.tokenizer, self.preprocessing = model.eval(), tokenizer, preprocessing
        self._fingerprint, self.batch_size = fingerprint, batch_size

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> ClipEncoder:
        """Load a CLIP folder. Raises `ArtefactError` when a part is missing, damaged, or they do not fit together."""
        if (folder / MANIFEST).is_file():
            verify(folder)
        preprocessing, tokenizer = Preprocessing.load(folder), load_text_tokenizer(folder)
        try:
            with _no_progress_bar():
                model = CLIPModel.from_pretrained(str(folder), use_safetensors=True, local_files_only=True)
        except Exception as error:  # transformers raises OSError, ValueError, RuntimeError and others for damaged folders
            raise ArtefactError(f"{folder} cannot be loaded as a CLIP model: {str(error).splitlines()[0]}") from None
        _check_parts(folder, model, tokenizer, preprocessing)
        return cls(model.to(device), tokenizer, preprocessing, encoder_fingerprint(folder))

    @property
    def width(self) -> int:
        """E, the width of the projections."""
        return int(self.model.config.projection_dim)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over everything that decides a vector."""
        return self._fingerprint

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → (N, E) float32, rows of length 1; beyond the tower's length a text is cut."""
        max_length = self.model.config.text_config.max_position_embeddings
        batches = []
        for start in range(0, len(texts), self.batch_size):
            ids, mask = encode_padded(self.tokenizer, texts[start : start + self.batch_size], max_length)
            batches.append(self._text_features(torch.from_numpy(ids), torch.from_numpy(mask)))
        return self._stacked(batches)

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Pictures of any size and mode → (N, E) float32, rows of length 1."""
        batches = []
        for start in range(0, len(images), self.batch_size):
            pixels = self.preprocessing.pixels(images[start : start + self.batch_size])
            batches.append(self._image_features(torch.from_numpy(pixels)))
        return self._stacked(batches)

    @torch.no_grad()
    def _text_features(self, ids: Tensor, mask: Tensor) -> np.ndarray:
        device = self.model.device
        features = self.model.get_text_features(input_ids=ids.to(device), attention_mask=mask.to(device))
        return _unit_rows(features.pooler_output)

    @torch.no_grad()
    def _image_features(self, pixels: Tensor) -> np.ndarray:
        features = self.model.get_image_features(pixel_values=pixels.to(self.model.device, self.model.dtype))
        return _unit_rows(features.pooler_output)

    def _stacked(self, batches: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.zeros((0, self.width), np.float32), *batches])  # (N, E)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Loading takes a moment; the bar that transformers would draw for it says nothing."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _unit_rows(features: Tensor) -> np.ndarray:
    vectors: np.ndarray = torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
    return vectors


def _check_parts(folder: Path, model: CLIPModel, tokenizer: Tokenizer, preprocessing: Preprocessing) -> None:
    """The tokenizer must not exceed the text embedding, and the pixels must have the vision tower's size."""
    rows, size = model.config.text_config.vocab_size, model.config.vision_config.image_size
    if tokenizer.get_vocab_size() > rows:
        raise ArtefactError(
            f"{folder} is made of parts that do not belong together: its tokenizer has {tokenizer.get_vocab_size()} ids, "
            f"its text tower {rows}"
        )
    framed = preprocessing.crop or (preprocessing.height, preprocessing.width)
    if framed != (size, size):
        raise ArtefactError(
            f"{folder} is made of parts that do not belong together: its preprocessing gives {framed[0]}×{framed[1]} pixels, "
            f"its vision tower expects {size}×{size}"
        )
