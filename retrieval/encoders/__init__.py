"""Encoders: texts and pictures to unit vectors in one space. One file per kind, listed here by `model_type`.

    clip        any CLIP folder in the layout of transformers, also the ones that `retrieval.train_encoder` writes
    siglip      any SigLIP folder in that layout
    hashing     deterministic features without weights, for tests and as a floor to compare with

A new kind is one module with a function `load(folder, device) -> Encoder`, and one line here.
"""

from __future__ import annotations

import json
from pathlib import Path

from cm3.core.errors import ArtefactError
from cm3.core.registry import Registry
from retrieval.encoders.hub import encoder_folder
from retrieval.encoders.protocol import Encoder

__all__ = ["ENCODERS", "Encoder", "load_encoder"]

ENCODERS = Registry(
    "encoder",
    {
        "clip": "retrieval.encoders.clip:load_clip",
        "siglip": "retrieval.encoders.siglip:load_siglip",
        "hashing": "retrieval.encoders.hashing:load_hashing",
    },
)


def load_encoder(path: Path | str, device: str = "cpu") -> Encoder:
    """The encoder in folder `path` (or of that name on the hub), found by the `model_type` of its config.json, on `device`.

    Raises `ArtefactError` when the folder is missing, damaged or of a kind that no encoder here reads, `InputError` when a
    name on the hub cannot be fetched.
    """
    folder = encoder_folder(path)
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(
            f"{folder} is not an encoder folder: its config.json cannot be read ({type(error).__name__}); "
            "expected a CLIP folder in the layout of transformers"
        ) from None
    if kind not in ENCODERS.names():
        raise ArtefactError(f"{folder} holds a {kind!r} model; as an encoder, expected one of {', '.join(ENCODERS.names())}")
    encoder: Encoder = ENCODERS.get(kind)(folder, device)
    return encoder
