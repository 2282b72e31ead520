"""`DocumentTokenizer`: Documents to token ids and back, for any interleaving of text and pictures.

Texts go through the text tokenizer and pictures through the image tokenizer, both in batches; a picture that carries
its codes needs no image tokenizer. `decode` is the exact inverse, except that a picture comes back as its codes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import batched
from pathlib import Path

import numpy as np

from cm3.core.artefact import read_json, write_json
from cm3.core.errors import ArtefactError, InputError, UsageError
from cm3.core.protocols import ImageTokenizer
from cm3.documents import Document, ImageSegment, TextSegment
from cm3.tokens.layout import split_segments
from cm3.tokens.text import BPETextTokenizer
from cm3.tokens.tokenized import SpanKind, TokenizedDocument, assemble
from cm3.tokens.vocab import Vocab

LAYOUT_FILE = "token_layout.json"
