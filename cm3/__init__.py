"""cm3: autoregressive token-based multimodal models, from pictures and text to pictures and text.

The folders are the stages in the order of the data: documents, tokens, sequences, model, decode. `CM3Pipeline` joins them.
Importing this package is cheap: the heavy parts load when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cm3.documents import Document, ImageSegment, TextSegment
    from cm3.model import CM3Config, CM3ForCausalLM
    from cm3.pipeline import CM3Pipeline

__version__ = "0.1.0"

_LAZY = {
    "CM3Pipeline": "cm3.pipeline",
    "CM3Config": "cm3.model",
    "CM3ForCausalLM": "cm3.model",
    "Document": "cm3.documents",
    "ImageSegment": "cm3.documents",
    "TextSegment": "cm3.documents",
}

__all__ = ["CM3Config", "CM3ForCausalLM", "CM3Pipeline", "Document", "ImageSegment", "TextSegment", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'cm3' has no attribute {name!r}")
