"""The encoder of a build that was given none: trained on the pairs of its source, and kept until the bank is published.

    .OUT.encoder/DIGEST          the encoder; DIGEST stands for the pairs it was trained on
    .OUT.encoder/.DIGEST.run-…   its training, while it goes on (see `retrieval.training`)

A build that is cut short leaves the folder. The next one reads its source again; where the pairs are those of then, by the
ids and contents that `bank_writer` goes by as well, it takes the encoder up, or goes on training it. Other pairs get an
encoder of their own.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cm3.core.artefact import verify
from cm3.core.errors import ArtefactError
from cm3.core.progress import progress
from cm3.core.storage import sibling
from cm3.documents.readers import read_documents
from cm3.documents.report import ReadReport
from cm3.train.runlock import LOCK_NAME, run_lock
from retrieval.config import TrainEncoderConfig
from retrieval.store import content_hash

LEAST_PAIRS = 64  # fewer teach an encoder nothing
_CHECKPOINT_EVERY = 100  # steps: some twenty seconds of work
_TRAIN = TrainEncoderConfig().train
SETTINGS = TrainEncoderConfig(train=_TRAIN.model_copy(update={"checkpoint_every": _CHECKPOINT_EVERY}))

_logger = logging.getLogger(__name__)


def own_place(out: Path) -> Path:
    """Where the build of `out` has an encoder of its own."""
    return sibling(out, prefix=".", suffix=".encoder")


@contextmanager
def own_encoder(source: Path | str, out: Path) -> Iterator[Path | None]:
    """The folder of an encoder trained on the pairs of `source`, for the block; None when there are too few of them.

    It stays when the block fails; the build that publishes its bank removes `own_place`. Raises what `train_encoder` raises,
    and `RunLockedError` when another process builds `out` with an encoder of its own.
    """
    place = own_place(out)
    with run_lock(place):
        try:
            yield _taken_up_or_trained(source, out, place)
        except BaseException:
            if any(entry.name != LOCK_NAME for entry in place.iterdir()):
                _logger.warning("%s: the encoder so far is kept in %s; the same command goes on with it", out, place)
            else:
                shutil.rmtree(place, ignore_errors=True)
            raise


def _taken_up_or_trained(source: Path | str, out: Path, place: Path) -> Path | None:
    from retrieval.training import train_encoder

    count, digest = _pairs(source)
    if count < LEAST_PAIRS:
        _logger.warning("%s: %d pairs of picture and text are too few to train an encoder; hashed features are used", out, count)
        return None
    folder = place / digest
    if _is_whole(folder):
        _logger.warning("%s: takes up the encoder that an interrupted build trained on the same %d pairs", out, count)
        return folder
    _logger.warning("%s: no encoder given; training a small one on its %d pairs (pass an encoder to avoid this)", out, count)
    return train_encoder(source, folder, SETTINGS, report=ReadReport()).path


def _pairs(source: Path | str) -> tuple[int, str]:
    """How many documents of `source` are pairs of picture and text, and a digest of them and of the settings of training."""
    count, total = 0, hashlib.sha256(SETTINGS.model_dump_json().encode())
    with progress(0, "pairs", unit="document") as bar:
        for document in read_documents(source, report=ReadReport()):
            if document.text.strip() and document.images:
                count += 1
                total.update(f"{document.id}\0{content_hash(document)}\0".encode("utf-8", "surrogatepass"))
            bar.advance()
    return count, total.hexdigest()[:12]


def _is_whole(folder: Path) -> bool:
    try:
        verify(folder, "encoder")
    except ArtefactError:
        return False
    return True
