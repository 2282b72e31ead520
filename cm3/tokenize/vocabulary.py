"""The document tokenizer of a project: a text tokenizer trained on its texts, joined with the codes of its image tokenizer.

The folder carries the code vectors of the image tokenizer, so that a model can start from them without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import vqgan
from cm3.core import artefact
from cm3.core.errors import ArtefactError, InputError
from cm3.documents.document import Document, TextSegment
from cm3.tokens import BPETextTokenizer, DocumentTokenizer, vocab_for
from cm3.tokens.document_tokenizer import CODEBOOK_FILE

TOKENIZER_KIND = "document_tokenizer"


def train_document_tokenizer(
    documents: Iterable[Document],
    image_tokenizer: Path,
    out: Path,
    text_vocab_size: int = 4096,
    provenance: Mapping[str, Any] | None = None,
) -> DocumentTokenizer:
    """Train a byte-level BPE on the texts of `documents`, join it with the codes of `image_tokenizer`, write `out`.

    text_vocab_size: most text ids (at least the 256 bytes); a small corpus gives fewer; provenance: more to state in the
    manifest. Raises `InputError` when no document has a text.
    """
    texts = [segment.text for document in documents for segment in document.segments if isinstance(segment, TextSegment)]
    if not texts:
        raise InputError("none of the documents has a text to train the text tokenizer on; give pictures with captions")
    pictures = vqgan.from_pretrained(image_tokenizer)
    text = BPETextTokenizer.train(texts, text_vocab_size)
    tokenizer = DocumentTokenizer(vocab_for(text, pictures.codebook_size, pictures.grid_shape), text, pictures)
    stated = {"image_tokenizer": artefact.fingerprint(image_tokenizer), "texts": len(texts), **(provenance or {})}
    with artefact.writing(out, TOKENIZER_KIND, stated) as folder:
        tokenizer.save(folder)
        save_file({"codebook": pictures.codebook.contiguous().to(torch.float32).cpu()}, folder / CODEBOOK_FILE)
    return tokenizer


def require_own_image_tokenizer(folder: Path, image_tokenizer: Path) -> None:
    """Raise `ArtefactError` if `folder` states that its codes are of another image tokenizer than `image_tokenizer`.

    folder: a document tokenizer, token shards or a model folder; equal sizes do not make the codes of two mean the same.
    """
    provenance = artefact.read_manifest(folder).provenance
    stated = provenance.get("image_tokenizer") or provenance.get("parts", {}).get("image_tokenizer")
    given = artefact.fingerprint(image_tokenizer)
    if stated not in (None, given):
        raise ArtefactError(
            f"{folder} was made with the image tokenizer {stated[:12]}, {image_tokenizer} is {given[:12]}: their codes "
            "mean other pictures, so they do not belong together; give the one it was made with"
        )
