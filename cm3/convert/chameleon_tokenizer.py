"""Chameleon's vocabulary: 65,536 ids in one byte-level BPE file, the pictures' among them.

    0 <s>   1 <pad>   2 </s>   3 <unk>   4… IMGIMG…Z (code + 4)   8196 <eoss>   8197 <racm3:break>
    8198… <sentinel:i>   8710 <reserved08706> (end of turn)   … <reservedN>   then text

All ids are read from the file. `<racm3:break>` opens a picture and `<eoss>` closes it; texts in a row are parted by the end
of turn; `<sentinel:i>` serves as `<mask:i>`; the end of a moved span gets a reserved id, since `<eoss>` has its other job.
In the tokenizer that comes out every id that is not text is a special token, so no text can produce one.
References: arXiv:2405.09818; the token names are those of the released tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cm3.core.artefact import read_json
from cm3.core.errors import ArtefactError, UsageError
from cm3.tokens import BPETextTokenizer, DocumentTokenizer, Vocab

BOS, PAD, EOS, UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"
IMAGE_OPEN, IMAGE_CLOSE, END_OF_TURN = "<racm3:break>", "<eoss>", "<reserved08706>"
IMAGE_PLACEHOLDER, PLACEHOLDER_SLOT = "<image>", "<reserved08707>"  # transformers' name for that slot, and the original one
SPAN_END = "<reserved08708>"
_ROLES = {
    "pad_id": PAD,
    "bos_id": BOS,
    "eos_id": EOS,
    "break_id": END_OF_TURN,
    "image_open_id": IMAGE_OPEN,
    "image_close_id": IMAGE_CLOSE,
    "eoss_id": SPAN_END,
}
_IMAGE_NAME = re.compile(r"IMGIMG([A-J]+)Z")
_SPECIAL_NAME = re.compile(r"<sentinel:\d+>|<reserved\d+>|IMGIMG[A-J]+Z")
_DIGITS = str.maketrans("ABCDEFGHIJ", "0123456789")
_LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")


def image_token_name(code: int) -> str:
    """How the vocabulary spells a picture's code: IMGIMG, its decimal digits as letters A–J, Z."""
    return f"IMGIMG{str(code).translate(_LETTERS)}Z"


def read_tokenizer(path: Path, codebook_size: int, grid_shape: tuple[int, int], size: int) -> DocumentTokenizer:
    """The tokenizer file at `path` as a `DocumentTokenizer` of `size` ids, for pictures of `grid_shape` codes.

    Raises `ArtefactError` when it is not the tokenizer of a Chameleon, or not of one with this codebook and size.
    """
    raw = read_json(path)
    if not isinstance(raw, dict) or not isinstance(raw.get("model"), dict) or not isinstance(raw["model"].get("vocab"), dict):
        raise ArtefactError(f"{path} is not a BPE tokenizer file; expected Chameleon's text_tokenizer.json or tokenizer.json")
    ids = {**raw["model"]["vocab"], **{entry["content"]: entry["id"] for entry in raw.get("added_tokens", [])}}
    specials = {name for name in ids if _SPECIAL_NAME.fullmatch(name)}
    specials |= {entry["content"] for entry in raw.get("added_tokens", [])}
    specials |= {*_ROLES.values(), UNKNOWN, IMAGE_PLACEHOLDER} & set(ids)
    raw["added_tokens"] = [_special_entry(name, ids[name]) for name in sorted(specials, key=ids.__getitem__)]
    vocab = _vocab(path, ids, specials, codebook_size, grid_shape, size)
    try:
        text = BPETextTokenizer(Tokenizer.from_str(json.dumps(raw)))
        stray = [id_ for row in text.encode_batch(sorted(specials)) for id_ in row if not vocab.is_text(id_)]
    except Exception as error:  # tokenizers raises bare Exception; a KeyError is a byte without an id
        raise ArtefactError(f"{path} is not a byte-level BPE tokenizer: {error}; restore it from a copy") from None
    if stray:
        raise ArtefactError(f"{path}: a plain text would be encoded as the special id {stray[0]}; this tokenizer cannot be used")
    return DocumentTokenizer(vocab, text)


def foreign_tokenizer(tokenizer: DocumentTokenizer, placeholder: str) -> dict[str, Any]:
    """The tokenizer file of a model in Chameleon's vocabulary, with the slot of the image placeholder called `placeholder`.

    Raises `UsageError` for a model with any other vocabulary.
    """
    raw = json.loads(tokenizer.text.to_json())
    vocabulary = raw["model"]["vocab"]
    last = image_token_name(tokenizer.vocab.codebook_size - 1)
    named = {entry["content"] for entry in raw["added_tokens"]} | set(vocabulary)
    if tokenizer.vocab.image_marks is None or not {*_ROLES.values(), last} <= named:
        raise UsageError(
            "this model has a vocabulary of its own, and Chameleon's layouts hold Chameleon's alone; keep it in ours"
        )
    renamed = {PLACEHOLDER_SLOT, IMAGE_PLACEHOLDER} - {placeholder}
    for old in renamed & set(vocabulary):
        raw["model"]["vocab"] = {placeholder if name == old else name: id_ for name, id_ in vocabulary.items()}
    for entry in raw["added_tokens"]:
        entry["content"] = placeholder if entry["content"] in renamed else entry["content"]
    return raw


def _vocab(
    path: Path, ids: Mapping[str, int], specials: set[str], codebook_size: int, grid_shape: tuple[int, int], size: int
) -> Vocab:
    if missing := [name for name in _ROLES.values() if name not in ids]:
        raise ArtefactError(f"{path} has no token {missing[0]}; expected the tokenizer of a Chameleon or Anole")
    image_start = _image_start(path, ids, codebook_size)
    mask_start, num_masks = _masks(path, ids)
    text_ids = sorted(id_ for name, id_ in ids.items() if name not in specials)
    if not text_ids or text_ids[-1] - text_ids[0] + 1 != len(text_ids):
        raise ArtefactError(f"{path}: its {len(text_ids)} text ids are no single range; expected them behind all special tokens")
    try:
        return Vocab(
            text_size=len(text_ids),
            codebook_size=codebook_size,
            grid_shape=grid_shape,
            num_masks=num_masks,
            mask_start=mask_start,
            text_start=text_ids[0],
            image_start=image_start,
            size=size,
            **{role: ids[name] for role, name in _ROLES.items()},
        )
    except UsageError as error:
        raise ArtefactError(f"{path} does not fit the model: {error}") from None


def _image_start(path: Path, ids: Mapping[str, int], codebook_size: int) -> int:
    """The id of code 0, from which all others follow by counting."""
    codes = {int(match[1].translate(_DIGITS)): id_ for name, id_ in ids.items() if (match := _IMAGE_NAME.fullmatch(name))}
    if len(codes) != codebook_size or any(id_ != codes.get(0, 0) + code for code, id_ in codes.items()):
        raise ArtefactError(
            f"{path} has {len(codes)} picture tokens IMGIMG…Z, expected {codebook_size} (the codebook) in the order "
            "of their codes; tokenizer and image tokenizer do not belong together"
        )
    return codes[0]


def _masks(path: Path, ids: Mapping[str, int]) -> tuple[int, int]:
    """First id and number of the sentinels `<sentinel:0>`, `<sentinel:1>` …"""
    start = ids.get("<sentinel:0>")
    if start is None:
        raise ArtefactError(f"{path} has no token <sentinel:0>; expected the tokenizer of a Chameleon or Anole")
    numbers = takewhile(lambda number: ids.get(f"<sentinel:{number}>") == start + number, range(len(ids)))
    return start, len(list(numbers))


def _special_entry(name: str, id_: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id_, "content": name, **flags, "special": True}
