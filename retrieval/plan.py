"""What becomes a published memory bank: documents and vectors that are there, then index, recall, description and encoder.

scratch folder (`bank_writer`) → temporary generation → index, bank.json, encoder/ → manifest, one rename of `CURRENT`
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3.core.artefact import publishing, read_manifest, write_json
from cm3.core.errors import InputError
from cm3.core.storage import sibling
from retrieval.bank import BANK_FILE, ENCODER_FOLDER, KIND, BankInfo, MemoryBank
from retrieval.bank_writer import BankWriter, hand_over, writing_bank
from retrieval.config import BuildConfig
from retrieval.encoders import Encoder
from retrieval.encoders.fingerprint import decisive_files
from retrieval.encoders.hashing import HashingEncoder
from retrieval.index import choose_index
from retrieval.indexing import index_vectors
from retrieval.vectors import load_vectors


@dataclass(frozen=True)
class BuiltBank:
    """What `build` made: folder, number of documents, kind of index and its measured recall, fingerprint of the encoder."""

    path: Path
    count: int
    index: str
    recall: float
    encoder: str


@dataclass(frozen=True)
class BankPlan:
    """Where a bank goes and what stands in it beside documents, vectors and index.

    embedded: the encoder folder to copy, None for no copy; base: the generation that it is derived from.
    """

    out: Path
    encoder: Encoder
    config: BuildConfig
    embedded: Path | None
    provenance: dict[str, Any]
    base: Path | None = None

    def publish(self, fill: Callable[[BankWriter], None]) -> BuiltBank:
        """Write and publish the bank of what `fill` adds."""
        scratch = sibling(self.out.absolute(), prefix=".", suffix=".building")
        with writing_bank(self.out, scratch, self.encoder, self.config) as writer:
            fill(writer)
            if writer.count == 0:
                raise InputError("there are no documents to remember; give at least one")
            writer.finish()
            with publishing(self.out, KIND, self.provenance, self.base) as temporary:
                hand_over(scratch, temporary)
                info = self._describe(temporary, (writer.count, self.encoder.width))
                self._add_encoder(temporary / ENCODER_FOLDER)
        return BuiltBank(self.out, info.count, str(info.index["kind"]), float(info.recall["value"]), info.encoder)

    def _describe(self, folder: Path, shape: tuple[int, int]) -> BankInfo:
        """Index the vectors in `folder` and write bank.json."""
        index, recall = index_vectors(folder, load_vectors(folder, shape), self.encoder, self.config)
        index.save(folder)
        info = BankInfo(
            count=shape[0],
            width=shape[1],
            encoder=self.encoder.fingerprint,
            encoder_kind=self.encoder.kind,
            index=index.describe(),
            recall=recall,
        )
        write_json(folder / BANK_FILE, info.model_dump(mode="json"))
        return info

    def _add_encoder(self, target: Path) -> None:
        if isinstance(self.encoder, HashingEncoder):  # a few bytes, and it stands nowhere else
            target.mkdir()
            self.encoder.save(target)
        elif self.embedded is not None:
            _copy_encoder(self.embedded, target)


def derived_plan(bank: MemoryBank, out: Path, config: BuildConfig) -> BankPlan:
    """A plan for a bank of documents of `bank`: its encoder, its provenance, and its copy of the encoder if it has one.

    With the index "auto" it keeps a kind that was chosen: one that the rule does not give for the bank as it is.
    """
    own, kind = bank.folder / ENCODER_FOLDER, str(bank.info.index["kind"])
    if config.index == "auto" and kind != choose_index(len(bank), bank.info.width):
        config = config.model_copy(update={"index": kind})
    provenance = dict(read_manifest(bank.folder).provenance)
    return BankPlan(out, bank.encoder, config, own if own.is_dir() else None, provenance, base=bank.folder)


def _copy_encoder(source: Path, target: Path) -> None:
    """Copy what decides the vectors, and what transformers wants beside it."""
    target.mkdir()
    for file in [*decisive_files(source), *source.glob("tokenizer_config.json")]:
        shutil.copyfile(file, target / file.name)
