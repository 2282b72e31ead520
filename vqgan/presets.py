"""Named tokenizers. The only place where their literal sizes stand.

Published layouts: Make-A-Scene (arXiv:2203.13131) as used by CM3Leon, Chameleon (arXiv:2405.09818), LlamaGen (arXiv:2406.06525),
taming-transformers (arXiv:2012.09841), LDM (arXiv:2112.10752), DALL-E (arXiv:2102.12092).
"""

from __future__ import annotations

from typing import Any

from cm3.core.errors import UsageError
from cm3.core.registry import nearest
from vqgan.config import VQConfig


def _taming(image_size: int, multipliers: tuple[int, ...], attention_levels: tuple[int, ...], **sizes: Any) -> dict[str, Any]:
    options = {"channels": 128, "channel_multipliers": multipliers, "attention_levels": attention_levels, "latent_channels": 256}
    options |= sizes.pop("options", {})
    factor = 2 ** (len(multipliers) - 1)
    return {
        "image_size": image_size,
        "downsample_factor": factor,
        "network": "taming",
        "network_options": options,
        "quantizer": "vq",
        "codebook_dim": 256,
    } | sizes


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"image_size": 48, "downsample_factor": 8, "codebook_size": 512, "codebook_dim": 64, "network": "patch"},
    "quickstart": {"image_size": 48, "downsample_factor": 8, "codebook_size": 1024, "codebook_dim": 64, "network": "patch"},
    "pictures": {
        "image_size": 64,
        "downsample_factor": 8,
        "codebook_size": 1024,
        "codebook_dim": 64,
        "network": "patch",
        "network_options": {"pixel_channels": 16},
    },
    "make-a-scene-256": _taming(256, (1, 1, 2, 4), (3,), codebook_size=8192),
    "chameleon-512": _taming(512, (1, 1, 2, 2, 4), (), codebook_size=8192),
    "llamagen-16": _taming(256, (1, 1, 2, 2, 4), (4,), codebook_size=16384, codebook_dim=8, quantizer="cosine"),
    "llamagen-8": _taming(256, (1, 2, 2, 4), (3,), codebook_size=16384, codebook_dim=8, quantizer="cosine"),
    "taming-16": _taming(256, (1, 1, 2, 2, 4), (4,), codebook_size=16384),
    "ldm-8": _taming(256, (1, 2, 2, 4), (3,), codebook_size=16384, codebook_dim=4, options={"latent_channels": 4}),
    "dalle": {
        "image_size": 256,
        "downsample_factor": 8,
        "codebook_size": 8192,
        "codebook_dim": 128,
        "network": "dvae",
        "quantizer": "gumbel",
        "quantizer_options": {"latent_dim": 2048},
    },
}


def preset(name: str) -> VQConfig:
    """The tokenizer called `name`; raises `UsageError` with the nearest names for an unknown one."""
    if name not in PRESETS:
        raise UsageError(f"unknown tokenizer preset {name!r}; {nearest(name, list(PRESETS))}")
    return VQConfig(**PRESETS[name])
