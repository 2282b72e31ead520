"""Image tokenizers: pixels to discrete codes and back. Train, evaluate, convert and run them; useful without the rest.

    tokenizer = vqgan.from_pretrained("tokenizer/")
    codes = tokenizer.encode(tokenizer.preprocess([image]))       # (1, h, w) int64
    [picture] = tokenizer.postprocess(tokenizer.decode(codes))

Names are imported when they are first used, so that `import vqgan` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqgan.config import LossConfig, PreprocessConfig, VQConfig, VQTrainConfig
    from vqgan.conversion.convert import convert, export
    from vqgan.conversion.lpips import convert_lpips
    from vqgan.decoding import DecodeConfig, decode_documents
    from vqgan.encoding import EncodeConfig, encode_documents
    from vqgan.evaluation import evaluate, worst_and_best
    from vqgan.judges import open_judges
    from vqgan.sheets import Extremes
    from vqgan.tokenizer import VQTokenizer, from_pretrained
    from vqgan.training import train

_EXPORTS = {
    "DecodeConfig": "vqgan.decoding",
    "EncodeConfig": "vqgan.encoding",
    "Extremes": "vqgan.sheets",
    "LossConfig": "vqgan.config",
    "PreprocessConfig": "vqgan.config",
    "VQConfig": "vqgan.config",
    "VQTokenizer": "vqgan.tokenizer",
    "VQTrainConfig": "vqgan.config",
    "convert": "vqgan.conversion.convert",
    "convert_lpips": "vqgan.conversion.lpips",
    "decode_documents": "vqgan.decoding",
    "encode_documents": "vqgan.encoding",
    "evaluate": "vqgan.evaluation",
    "export": "vqgan.conversion.convert",
    "from_pretrained": "vqgan.tokenizer",
    "open_judges": "vqgan.judges",
    "train": "vqgan.training",
    "worst_and_best": "vqgan.evaluation",
}

__all__ = [
    "DecodeConfig",
    "EncodeConfig",
    "Extremes",
    "LossConfig",
    "PreprocessConfig",
    "VQConfig",
    "VQTokenizer",
    "VQTrainConfig",
    "convert",
    "convert_lpips",
    "decode_documents",
    "encode_documents",
    "evaluate",
    "export",
    "from_pretrained",
    "open_judges",
    "train",
    "worst_and_best",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'vqgan' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
