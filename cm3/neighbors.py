"""Retrieved documents before a prompt: as many as fit, nearest first, each of them whole.

documents, nearest first → cm3.tokens → `augment` of cm3.sequences → prompt
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from cm3.core.errors import UsageError
from cm3.core.protocols import Retriever
from cm3.decode import Prompt, continuation
from cm3.documents.document import Document
from cm3.sequences.augmentation import augment
from cm3.tokens.document_tokenizer import DocumentTokenizer
from cm3.tokens.tokenized import TokenizedDocument
from cm3.tokens.turns import Turn


def require_retrievable(count: int, hindrance: str | None = None) -> None:
    """Raise `UsageError` for fewer documents than none, or for any where a `hindrance` says why there can be none."""
    if count < 0:
        raise UsageError(f"retrieve must be at least 0, got {count}")
    if count and hindrance:
        raise UsageError(f"retrieve is {count}, but {hindrance}, or leave retrieve at 0")


def nearest(memory: Retriever, turns: Sequence[Turn], count: int) -> list[Document]:
    """What `memory` holds nearest to the picture of a request, or to its words when there is no picture."""
    asked = Document("request", tuple(segment for turn in turns for segment in turn.segments))
    query = {"image": asked.images[0].load()} if asked.images else {"text": asked.text}
    return [found.document for found in memory.search(**query, k=count)]


def behind_neighbors(document: TokenizedDocument, found: Sequence[Document], tokenizer: DocumentTokenizer, most: int) -> Prompt:
    """The prompt `document` behind those of `found` with which it has at most `most` tokens.

    One that does not fit is left out whole, the next one is tried, and a warning says so. What cannot fit is not encoded, so
    that asking for more than the context holds costs little.
    """
    kept: list[TokenizedDocument] = []
    room = most - len(document)
    for neighbor in found:
        if _fewest_tokens(neighbor, tokenizer) <= room:
            encoded = tokenizer.encode(neighbor)
            added = len(encoded) - 1  # its <bos> and <eos> go, a <break> comes
            if added <= room:
                kept.append(encoded)
                room -= added
    if len(kept) < len(found):
        warnings.warn(
            f"of {len(found)} retrieved documents {len(kept)} fit beside the prompt and its answer into the model's context; "
            "the others were left out whole",
            stacklevel=5,
        )
    joined = augment(document, kept, tokenizer.vocab, most)
    return continuation(joined, tokenizer.vocab, len(joined.spans) - len(document.spans))


def _fewest_tokens(document: Document, tokenizer: DocumentTokenizer) -> int:
    """How many tokens `document` adds at least: a picture all of its codes, a text one, and each a delimiter."""
    return len(document.images) * (tokenizer.vocab.num_image_tokens - 1) + 2 * len(document.segments)
