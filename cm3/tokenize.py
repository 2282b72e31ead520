"""Documents to training data: the document tokenizer of a project, and token shards made with it.

    documents + image tokenizer ──► train_document_tokenizer ──► TOKENIZER/  (text tokenizer, id layout, code vectors)
    documents + TOKENIZER/      ──► tokenize                 ──► TOKENS/     (token shards, `cm3.sequences.shards`)

The tokenizer folder carries the code vectors of the image tokenizer, so that a model can start from them without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import vqgan
from cm3.core import artefact
from cm3.core.errors import InputError
from cm3.core.progress import Progress, progress
from cm3.core.protocols import ImageTokenizer
from cm3.documents.document import Document, TextSegment
from cm3.documents.readers import read_documents
from cm3.documents.report import ReadReport
from cm3.pretrain.run import CODEBOOK_FILE
from cm3.sequences.shards import write_shards
from cm3.tokens import BPETextTokenizer, DocumentTokenizer, TokenizedDocument, vocab_for

TOKENIZER_KIND = "document_tokenizer"


def train_document_tokenizer(
    documents: Iterable[Document], image_tokenizer: Path, out: Path, text_vocab_size: int = 4096
) -> DocumentTokenizer:
    """Train a byte-level BPE on the texts of `documents`, join it with the codes of `image_tokenizer`, write `out`.

    text_vocab_size: most text ids (at least the 256 bytes); a small corpus gives fewer. Raises `InputError` when no document
    has a text.
    """
    texts = [segment.text for document in documents for segment in document.segments if isinstance(segment, TextSegment)]
    if not texts:
        raise InputError("none of the documents has a text to train the text tokenizer on; give pictures with captions")
    pictures = vqgan.from_pretrained(image_tokenizer)
    text = BPETextTokenizer.train(texts, text_vocab_size)
    tokenizer = DocumentTokenizer(vocab_for(text, pictures.codebook_size, pictures.grid_shape), text, pictures)
    provenance = {"image_tokenizer": artefact.fingerprint(image_tokenizer), "texts": len(texts)}
    with artefact.writing(out, TOKENIZER_KIND, provenance) as folder:
        tokenizer.save(folder)
        save_file({"codebook": pictures.codebook.contiguous().to(torch.float32).cpu()}, folder / CODEBOOK_FILE)
    return tokenizer


def tokenize(
    source: Path | str, tokenizer: Path, image_tokenizer: Path, out: Path, format: str | None = None, budget: float = 0.01
) -> dict[str, Any]:
    """Read `source`, tokenize every document, write token shards to `out`; returns the account of the records.

    The account is {"seen", "ok", "rejected": {reason: n}, "problems": [...], "tokens": n}. Raises `BudgetError` when more than
    `budget` of the records were rejected (nothing is written then), `ArtefactError` when the tokenizers do not belong together.
    """
    pictures: ImageTokenizer = vqgan.from_pretrained(image_tokenizer)
    artefact.verify(tokenizer, TOKENIZER_KIND)
    document_tokenizer = DocumentTokenizer.load(tokenizer, pictures)
    report, tokens = ReadReport(), 0

    def counted(bar: Progress) -> Iterator[TokenizedDocument]:
        nonlocal tokens
        for document in document_tokenizer.encode_many(read_documents(source, format, report)):
            tokens += len(document)
            bar.advance(1)
            yield document
        report.check(budget)

    provenance = {
        "source": str(source),
        "tokenizer": artefact.fingerprint(tokenizer),
        "image_tokenizer": artefact.fingerprint(image_tokenizer),
    }
    with progress(0, "tokenizing", unit="document") as bar:
        write_shards(counted(bar), out, document_tokenizer.vocab, provenance)
    return {**asdict(report), "tokens": tokens}
