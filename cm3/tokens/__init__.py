"""One vocabulary for text and pictures: Documents to token ids and back, and dialogs with a loss mask."""

from cm3.tokens.document_tokenizer import DocumentTokenizer, vocab_for
from cm3.tokens.text import BPETextTokenizer
from cm3.tokens.tokenized import Span, SpanKind, TokenizedDocument, assemble, grid_positions_of
from cm3.tokens.turns import Turn, encode_prompt, encode_turns, prompt_ids
from cm3.tokens.vocab import Vocab

__all__ = [
    "BPETextTokenizer",
    "DocumentTokenizer",
    "Span",
    "SpanKind",
    "TokenizedDocument",
    "Turn",
    "Vocab",
    "assemble",
    "encode_prompt",
    "encode_turns",
    "grid_positions_of",
    "prompt_ids",
    "vocab_for",
]
