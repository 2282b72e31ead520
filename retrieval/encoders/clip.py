"""CLIP as an encoder: any CLIP folder in the layout of transformers (arXiv:2103.00020), without torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPModel

from retrieval.encoders.fingerprint import encoder_fingerprint
from retrieval.encoders.preprocessing import Preprocessing
from retrieval.encoders.text import encode_padded, load_text_tokenizer
from retrieval.encoders.towers import TwoTowerEncoder, load_model, require_fitting


def load_clip(folder: Path, device: str = "cpu") -> TwoTowerEncoder:
    """Load a CLIP folder. Raises `ArtefactError` when a part is missing, damaged, or they do not fit together."""
    preprocessing, tokenizer = Preprocessing.load(folder), load_text_tokenizer(folder)
    model = load_model(folder, CLIPModel)
    require_fitting(folder, model, tokenizer.get_vocab_size(), preprocessing)
    max_length = model.config.text_config.max_position_embeddings

    def tokenize(texts: Sequence[str]) -> dict[str, Tensor]:
        ids, mask = encode_padded(tokenizer, texts, max_length)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    width = model.config.projection_dim
    return TwoTowerEncoder(model.to(device), width, tokenize, preprocessing, encoder_fingerprint(folder))
