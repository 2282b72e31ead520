"""The network of encoder training: a CLIP of transformers with fresh weights, what the loss needs of it, and its folder.

EncoderShape → new_clip → PairModel (pixels, ids → unit vectors, scale) → save_encoder → CLIP folder
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPConfig, CLIPModel

from cm3.core.seeding import derive_seed
from retrieval.config import TrainEncoderConfig
from retrieval.encoders.preprocessing import Preprocessing
from retrieval.encoders.presets import EncoderShape, TowerShape
from retrieval.encoders.text import BOS_ID, EOS_ID, PAD_ID, save_text_tokenizer

_MAX_SCALE = 100.0
_PLACE_STD = 0.5  # CLIP's 0.02 drowns in the patches: what stands where is then learned late or never


class PairModel(nn.Module):
    """A CLIP whose forward pass gives what the loss needs, so that it can be wrapped for several processes."""

    def __init__(self, clip: CLIPModel, chunk_size: int | None = None) -> None:
        super().__init__()
        self.clip, self.chunk_size = clip, chunk_size

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels (B, 3, Y, X), ids and mask (M, T) with M ≥ B → unit vectors (B, E) and (M, E), and the scale (0-d)."""
        images, texts = self._chunked(self._images, pixels), self._chunked(self._texts, ids, mask)
        return images, texts, self.clip.logit_scale.exp().clamp(max=_MAX_SCALE)

    @contextmanager
    def unchunked(self) -> Iterator[None]:
        """All rows at once for the block."""
        self.chunk_size, before = None, self.chunk_size
        try:
            yield
        finally:
            self.chunk_size = before

    def _images(self, pixels: Tensor) -> Tensor:
        return nn.functional.normalize(self.clip.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)

    def _texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        found = self.clip.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        return nn.functional.normalize(found.float(), dim=-1)

    def _chunked(self, tower: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """`tower` over `chunk_size` rows at a time; only its vectors are kept, activations are computed again for the gradient.

        The loss needs the vectors of all rows at once, but the activations of only one chunk: that is gradient caching
        (arXiv:2101.06983), done by checkpointing.
        """
        if self.chunk_size is None or not torch.is_grad_enabled():
            return tower(*inputs)
        chunks = zip(*(tensor.split(self.chunk_size) for tensor in inputs), strict=True)
        return torch.cat([checkpoint(tower, *chunk, use_reentrant=False) for chunk in chunks])


def new_clip(tokenizer: Tokenizer, config: TrainEncoderConfig, shape: EncoderShape) -> CLIPModel:
    """A CLIP of this shape with fresh weights, the same for the same seed."""
    size = tokenizer.get_vocab_size()
    text = _tower(shape.text) | {"vocab_size": size, "max_position_embeddings": shape.max_text_length}
    text |= {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    vision = _tower(shape.vision) | {"image_size": shape.image_size, "patch_size": shape.patch_size}
    clip_config = CLIPConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=shape.projection_dim,
        logit_scale_init_value=-math.log(config.temperature),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.train.seed, "encoder weights"))
        clip = CLIPModel(clip_config)
        nn.init.normal_(clip.vision_model.embeddings.position_embedding.weight, std=_PLACE_STD)
    return clip


def save_encoder(clip: CLIPModel, tokenizer: Tokenizer, shape: EncoderShape, folder: Path) -> None:
    """Write config.json, model.safetensors, tokenizer.json, tokenizer_config.json and preprocessor_config.json."""
    clip.config.save_pretrained(folder)
    weights = {name: tensor.contiguous().cpu() for name, tensor in clip.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    save_text_tokenizer(tokenizer, folder, shape.max_text_length)
    settings = Preprocessing.square(shape.image_size).to_json()
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def _tower(shape: TowerShape) -> dict[str, Any]:
    return {**shape.model_dump(), "intermediate_size": 4 * shape.hidden_size, "hidden_act": "gelu"}
