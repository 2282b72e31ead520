"""The text side of an encoder: a byte-level BPE in tokenizer.json, trained here or of any CLIP folder.

Strings in, padded token ids and their mask out. Two traps are handled here. The text tower of CLIP in transformers pools
at the first `eos`, but at the *largest id* when `eos_token_id` is 2 (kept there for old checkpoints); so a tokenizer
trained here has `eos` at 1. And the text of a user that spells a special token ("<eos>") stays text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from cm3.core.errors import ArtefactError

PAD, EOS, BOS = "<pad>", "<eos>", "<bos>"
PAD_ID, EOS_ID, BOS_ID = 0, 1, 2
_MAX_FILE_BYTES = 32 * 1024 * 1024


def train_text_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A lower-casing byte-level BPE of at most `vocab_size` ids, which frames every text as `<bos> text <eos>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS, BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, BOS_ID), (EOS, EOS_ID)]
    )
    return tokenizer


def save_text_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write tokenizer.json and the tokenizer_config.json that lets transformers load it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": EOS,
        "bos_token": BOS,
        "model_max_length": max_length,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def load_text_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer.json in `folder`. Raises `ArtefactError` when it is missing, too large or unusable."""
    file = folder / "tokenizer.json"
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            raise ArtefactError(f"{file} is larger than {_MAX_FILE_BYTES // 2**20} MiB, which no text tokenizer needs")
        tokenizer = Tokenizer.from_file(str(file))
    except ArtefactError:
        raise
    except FileNotFoundError:
        raise ArtefactError(f"{folder} has no tokenizer.json; convert its tokenizer with transformers' save_pretrained") from None
    except Exception as error:  # the parser in Rust raises bare Exception
        raise ArtefactError(f"{file} cannot be read as a tokenizer: {error}") from None
    tokenizer.encode_special_tokens = True  # "<eos>" in a caption is text
    return tokenizer


def encode_padded(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts → ids and mask, both (N, T) int64 with T the longest of the batch, at most `max_length`.

    A longer text loses its end but keeps its `eos`. Padding has id 0 and mask 0.
    """
    tokenizer.enable_truncation(max_length)
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)  # (N, T)
    mask = np.zeros_like(ids)
    for row, found in enumerate(rows):
        ids[row, : len(found)] = found
        mask[row, : len(found)] = 1
    return ids, mask
