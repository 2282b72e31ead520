"""Byte-level BPE for text, exactly invertible; `str` goes in, vocabulary ids come out.

Every text is encoded as if one space stood before it, and decoding strips exactly one: so "circle" at the start of a
segment is the same token as " circle" inside a sentence, and `decode(encode(text)) == text` still holds for every text.
The ids are those of the whole vocabulary (special tokens first, then text), so nothing adds an offset afterwards. Text
that spells a special token ("<mask:0>") is encoded as the letters it is made of. Files: `tokenizer.json` (Hugging Face
tokenizers) and `tokenizer_config.json`, as `transformers.PreTrainedTokenizerFast` reads them; this module needs only
`tokenizers`. Reference: byte-level BPE of GPT-2 (Radford et al. 2019).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from cm3.core.artefact import write_json, write_text
from cm3.core.errors import ArtefactError, InputError, UsageError
from cm3.tokens.vocab import special_names

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
NUM_BYTES = 256


class BPETextTokenizer:
    """A trained tokenizer; make one with `train` or `load`, or give any byte-level BPE whose other ids are special tokens.

    first_id: the smallest text id; vocab_size: number of text ids (special tokens not counted), so the text range of
    the vocabulary is [first_id, first_id + vocab_size).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True  # "<eos>" in a user's text is five letters
        specials = {added.content for added in tokenizer.get_added_tokens_decoder().values() if added.special}
        text_ids = [id_ for token, id_ in tokenizer.get_vocab().items() if token not in specials]
        self.first_id = min(text_ids)
        self.vocab_size = max(text_ids) + 1 - self.first_id
        self._space_id = int(tokenizer.get_vocab()["Ġ"])  # the byte 0x20 in the alphabet of byte-level BPE
        self._adds_space = self.decode([self._space_id]) == ""  # before every text, so that even the empty one has a token

    @classmethod
    def train(cls, corpus: Iterable[str], vocab_size: int, num_masks: int = 16) -> BPETextTokenizer:
        """Learn merges from `corpus` until there are `vocab_size` text ids (fewer when the corpus has no more pairs).

        The same corpus gives the same tokenizer. Raises `UsageError` when `vocab_size` is below 256: every byte needs
        an id, otherwise some text could not be written.
        """
        if vocab_size < NUM_BYTES:
            raise UsageError(f"a text vocabulary needs at least {NUM_BYTES} ids, one per byte; got vocab_size={vocab_size}")
        specials = special_names(num_masks)
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Prepend(" ")
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size + len(specials),
            special_tokens=specials,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator((require_encodable(text) for text in corpus), trainer)
        return cls(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Vocabulary ids of `text`, never a special id and never empty (the empty text is one space token).

        Raises `InputError` for a text with lone surrogates, which is not Unicode, and for an empty text if this tokenizer
        puts no space before a text: then no token could be read back as nothing.
        """
        return self.encode_batch([text])[0]

    def encode_continued(self, text: str) -> list[int]:
        """Ids of a text as it stands behind others of its segment: no space is put before it. Raises `InputError` as `encode`."""
        if not self._adds_space:
            return self.encode(text)
        words = self._tokenizer.pre_tokenizer.pre_tokenize_str(require_encodable(text))
        return [token.id for word, _ in words for token in self._tokenizer.model.tokenize(word)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts at once, several times faster than one by one."""
        for text in texts:
            require_encodable(text)
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        if not self._adds_space and not all(encoding.ids for encoding in encodings):
            raise InputError("a text is empty, which this tokenizer has no token for; leave that segment out")
        return [encoding.ids or [self._space_id] for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD. One leading space is stripped, if there is one."""
        return self._tokenizer.decode([int(id_) for id_ in ids], skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` into `folder` (created when missing)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / TOKENIZER_FILE, self.to_json())
        write_json(folder / CONFIG_FILE, _TRANSFORMERS_CONFIG)

    @classmethod
    def load(cls, folder: Path) -> BPETextTokenizer:
        """Read what `save` wrote. Raises `ArtefactError` when `tokenizer.json` is missing or cannot be parsed."""
        path = Path(folder) / TOKENIZER_FILE
        try:
            return cls(Tokenizer.from_str(path.read_text("utf-8")))
        except FileNotFoundError:
            raise ArtefactError(f"{folder} has no {TOKENIZER_FILE}; give a folder that holds a text tokenizer") from None
        except Exception as error:  # tokenizers raises bare Exception for every parsing problem
            raise ArtefactError(f"{path} is not a tokenizer file: {error}; restore it from a copy") from None

    def to_json(self) -> str:
        """The content of `tokenizer.json`: equal tokenizers give equal text."""
        return json.dumps(json.loads(self._tokenizer.to_str()), ensure_ascii=False, indent=1) + "\n"


def require_encodable(text: str) -> str:
    """Return `text`; raises `InputError` when it holds lone surrogates, which no UTF-8 writes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text is not valid Unicode (lone surrogate U+{ord(text[error.start]):04X} at position {error.start}, "
            "as of bytes that are not UTF-8); write it as UTF-8 or remove that character"
        ) from None
    return text


_TRANSFORMERS_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "clean_up_tokenization_spaces": False,
    "split_special_tokens": True,  # also for transformers "<eos>" in a text is five letters
}
