"""Documents to training data: the document tokenizer of a project, and token shards made with it.

    documents + image tokenizer ──► train_document_tokenizer ──► TOKENIZER/  (text tokenizer, id layout, code vectors)
    documents + TOKENIZER/      ──► tokenize                 ──► TOKENS/     (token shards, `cm3.sequences.shards`)

vocabulary.py the first line · own_tokenizer.py the same for a call that may go on · parts.py one fixed piece of the records to
one folder · workers.py many processes, and the second line · merging.py all pieces to the shards · scale.py many machines
(datatrove, extra `scale`).
"""

from cm3.tokenize.own_tokenizer import own_tokenizer
from cm3.tokenize.vocabulary import TOKENIZER_KIND, train_document_tokenizer
from cm3.tokenize.workers import parts_folder, tokenize

__all__ = ["TOKENIZER_KIND", "own_tokenizer", "parts_folder", "tokenize", "train_document_tokenizer"]
