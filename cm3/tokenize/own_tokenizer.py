"""The document tokenizer that `cm3 tokenize` makes of its source: kept by a call that goes on, made anew when that changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cm3.core import artefact
from cm3.core.errors import ArtefactError
from cm3.documents.readers import read_documents
from cm3.documents.records import ReadOptions
from cm3.tokenize.parts import source_files
from cm3.tokenize.vocabulary import TOKENIZER_KIND, train_document_tokenizer


def own_tokenizer(source: Path | str, image_tokenizer: Path, out: Path, text_vocab_size: int) -> None:
    """Have the document tokenizer of `source` at `out`: one that was made of the same files, image tokenizer and size stays.

    Another one is replaced; parts that were made with it are then made anew too. Raises as `train_document_tokenizer` does.
    """
    deciding = [source_files(source), artefact.fingerprint(image_tokenizer), text_vocab_size]
    made_of = hashlib.sha256(json.dumps(deciding).encode()).hexdigest()
    try:
        if artefact.verify(out, TOKENIZER_KIND).provenance.get("made_of") == made_of:
            return
    except ArtefactError:  # none, or damaged
        pass
    documents = read_documents(source, options=ReadOptions(decode=False))
    train_document_tokenizer(documents, image_tokenizer, out, text_vocab_size, {"made_of": made_of})
