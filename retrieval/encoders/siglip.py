"""SigLIP as an encoder (arXiv:2303.15343): any SigLIP folder in the layout of transformers, without torchvision.

Two habits differ from CLIP's: every text is padded to the full length, without a mask, because the tower was trained so and reads
its last position; and pictures are squeezed into a square, not cropped, which their preprocessing configuration says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import SiglipModel

from retrieval.encoders.fingerprint import encoder_fingerprint
from retrieval.encoders.preprocessing import Preprocessing
from retrieval.encoders.text import encode_padded, load_text_tokenizer
from retrieval.encoders.towers import TwoTowerEncoder, load_model, require_fitting


def load_siglip(folder: Path, device: str = "cpu") -> TwoTowerEncoder:
    """Load a SigLIP folder. Raises `ArtefactError` when a part is missing, damaged, or they do not fit together."""
    preprocessing, tokenizer = Preprocessing.load(folder), load_text_tokenizer(folder)
    model = load_model(folder, SiglipModel)
    require_fitting(folder, model, tokenizer.get_vocab_size(), preprocessing)
    settings = model.config.text_config
    length, pad_id = settings.max_position_embeddings, settings.pad_token_id

    def tokenize(texts: Sequence[str]) -> dict[str, Tensor]:
        ids, mask = encode_padded(tokenizer, texts, length)
        full = np.full((len(ids), length), pad_id, np.int64)  # (N, T)
        full[:, : ids.shape[1]] = np.where(mask == 1, ids, pad_id)
        return {"input_ids": torch.from_numpy(full)}

    width = model.config.vision_config.hidden_size
    return TwoTowerEncoder(model.to(device), width, tokenize, preprocessing, encoder_fingerprint(folder))
