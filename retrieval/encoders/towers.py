"""Two towers of transformers as one encoder: what CLIP and SigLIP have in common.

texts    → tokenize      → text tower   → length 1
pictures → Preprocessing → vision tower → length 1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from cm3.core.artefact import MANIFEST, verify
from cm3.core.errors import ArtefactError
from retrieval.encoders.preprocessing import Preprocessing

Tokenize = Callable[[Sequence[str]], dict[str, Tensor]]
"""Texts → the arguments of `get_text_features`."""


class TwoTowerEncoder:
    """Fulfils `Encoder` with a model in evaluation mode that has `get_text_features` and `get_image_features`.

    Parameters
    ----------
    model, tokenize, preprocessing: the three parts of the folder.
    width: E, the width of what both towers give.
    fingerprint: identity of the folder (see `encoder_fingerprint`).

    `batch_size` items go through a tower at a time; it may be set, and does not change the vectors beyond rounding.
    """

    def __init__(self, model: Any, width: int, tokenize: Tokenize, preprocessing: Preprocessing, fingerprint: str) -> None:
        self.model, self.tokenize, self.preprocessing = model.eval(), tokenize, preprocessing
        self.kind, self.width, self.fingerprint = str(model.config.model_type), width, fingerprint
        self.batch_size = 64

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → (N, E) float32, rows of length 1; beyond the tower's length a text is cut."""
        return self._stacked(self._text_features(self.tokenize(texts[part])) for part in self._parts(len(texts)))

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Pictures of any size and mode → (N, E) float32, rows of length 1."""
        pixels = (torch.from_numpy(self.preprocessing.pixels(images[part])) for part in self._parts(len(images)))
        return self._stacked(map(self._image_features, pixels))

    @torch.no_grad()
    def _text_features(self, inputs: dict[str, Tensor]) -> np.ndarray:
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        return _unit_rows(self.model.get_text_features(**inputs).pooler_output)

    @torch.no_grad()
    def _image_features(self, pixels: Tensor) -> np.ndarray:
        pixels = pixels.to(self.model.device, self.model.dtype)
        return _unit_rows(self.model.get_image_features(pixel_values=pixels).pooler_output)

    def _parts(self, count: int) -> Iterator[slice]:
        return (slice(start, start + self.batch_size) for start in range(0, count, self.batch_size))

    def _stacked(self, batches: Iterator[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.zeros((0, self.width), np.float32), *batches])  # (N, E)


def load_model(folder: Path, model_class: Any) -> Any:
    """The weights in `folder`, from safetensors only, every file checked first if there is a manifest. Raises `ArtefactError`."""
    if (folder / MANIFEST).is_file():
        verify(folder)
    if not any(folder.glob("*.safetensors")):
        raise ArtefactError(
            f"{folder} has no model.safetensors, and weights in other formats are not opened; load it with transformers, if you "
            "trust it, and write it again by save_pretrained"
        )
    try:
        with _no_progress_bar():
            return model_class.from_pretrained(str(folder), use_safetensors=True, local_files_only=True)
    except Exception as error:  # transformers raises OSError, ValueError, RuntimeError and others for damaged folders
        raise ArtefactError(f"{folder} cannot be loaded as a {model_class.__name__}: {str(error).splitlines()[0]}") from None


def require_fitting(folder: Path, model: Any, vocab_size: int, preprocessing: Preprocessing) -> None:
    """Raise `ArtefactError` unless the ids fit the text tower and the pixels have the vision tower's size."""
    rows, size = model.config.text_config.vocab_size, model.config.vision_config.image_size
    if vocab_size > rows:
        raise ArtefactError(
            f"{folder} is made of parts that do not belong together: its tokenizer has {vocab_size} ids, its text tower {rows}"
        )
    if preprocessing.shape != (size, size):
        given = "×".join(map(str, preprocessing.shape))
        raise ArtefactError(
            f"{folder} is made of parts that do not belong together: its preprocessing gives {given} pixels, "
            f"its vision tower expects {size}×{size}"
        )


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
