"""The world as a data set on disk, in the public formats that users bring, through the public writers.

    OUT/pairs/SPLIT/*.tar   KEY.png, KEY.txt (a full caption), KEY.json {"scene", "held_out"}
    OUT/vqa/SPLIT/*.tar     KEY.png, KEY.json {"questions": [{"question", "answer", "kind", "explanation"}], "scene",
                            "held_out"}: in training up to three questions of every kind (six with the answer yes or
                            no), otherwise one; not every question has an explanation
    OUT/edits/SPLIT/*.tar   KEY.source.png, KEY.target.png, KEY.mask.png (white: the region that changes),
                            KEY.json {"instruction", "kind", "before", "after", "held_out"}

SPLIT is train, validation or test. Train and validation hold training scenes only, test scenes with held-out combinations
only (`cm3.scenes.split`). Sample i is drawn from a generator of its own, so it is the same in a data set of any size. Every
folder is written whole or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cm3.core.errors import UsageError
from cm3.core.progress import progress
from cm3.core.seeding import numpy_generator
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.documents.writers import write_documents
from cm3.scenes.edits import sample_edit
from cm3.scenes.language import caption
from cm3.scenes.questions import QUESTION_KINDS, YES_OR_NO, questions
from cm3.scenes.render import render
from cm3.scenes.sampling import sample_scene
from cm3.scenes.split import Split, is_held_out
from cm3.scenes.world import WorldConfig

PARTS = ("pairs", "vqa", "edits")
SPLITS: dict[str, Split] = {"train": "train", "validation": "train", "test": "test"}
TRAINING_ROUNDS = 3  # how often a training picture is asked about every kind of thing: an answer is few tokens, a picture many
TRAINING_KINDS = (*QUESTION_KINDS, *YES_OR_NO)  # these twice as often: whether two things are the same is learned last
_PNG_LEVEL = 1  # small flat pictures: higher levels cost time and save nothing

MakeDocument = Callable[[WorldConfig, str, int, int], Document]


@dataclass(frozen=True)
class WorldSummary:
    """What was written: documents by "part/split", pictures among them, and how fast."""

    documents: dict[str, int]
    num_images: int
    seconds: float

    @property
    def images_per_s(self) -> float:
        return self.num_images / max(self.seconds, 1e-9)


def pair_document(config: WorldConfig, split: str, seed: int, index: int) -> Document:
    """Sample `index` of pairs/`split`: a full caption, then the picture."""
    rng = numpy_generator(seed, "pairs", split, index)
    scene = sample_scene(rng, config, SPLITS[split])
    segments = (TextSegment(caption(scene, rng).text), _picture(render(scene, config)))
    return Document(_key(split, index), segments, {"scene": scene.to_json(), "held_out": is_held_out(scene)})


def vqa_document(config: WorldConfig, split: str, seed: int, index: int) -> Document:
    """Sample `index` of vqa/`split`: a picture, with questions (none twice) and their answers in meta."""
    rng = numpy_generator(seed, "vqa", split, index)
    scene = sample_scene(rng, config, SPLITS[split])
    rounds, kinds = (TRAINING_ROUNDS, TRAINING_KINDS) if split == "train" else (1, QUESTION_KINDS)
    asked = dict.fromkeys(item for _ in range(rounds) for item in questions(scene, rng, kinds))
    listed = [{name: value for name, value in asdict(item).items() if value} for item in asked]
    meta = {"questions": listed, "scene": scene.to_json(), "held_out": is_held_out(scene)}
    return Document(_key(split, index), (_picture(render(scene, config)),), meta)


def edit_document(config: WorldConfig, split: str, seed: int, index: int) -> Document:
    """Sample `index` of edits/`split`: pictures mask, source and target (in the order of their names), words in meta."""
    edit = sample_edit(numpy_generator(seed, "edits", split, index), config, SPLITS[split])
    pictures = {
        "mask": Image.fromarray(edit.mask.astype(np.uint8) * 255),
        "source": render(edit.before, config),
        "target": render(edit.after, config),
    }
    meta: dict[str, Any] = {"instruction": edit.instruction, "kind": edit.kind, "images": list(pictures)}
    meta |= {"before": edit.before.to_json(), "after": edit.after.to_json(), "held_out": is_held_out(edit.after)}
    return Document(_key(split, index), tuple(map(_picture, pictures.values())), meta)


_MAKERS: dict[str, MakeDocument] = {"pairs": pair_document, "vqa": vqa_document, "edits": edit_document}


def write_world(out: Path, config: WorldConfig, num_train: int, num_test: int, seed: int = 0) -> WorldSummary:
    """Write pairs, questions and edits under `out`.

    `num_train` pairs and a third as many vqa and edit samples for training; `num_test` of each for validation and for test.
    Raises `UsageError` for a number below 1, `StorageError` when the disk is full.
    """
    if num_train < 1 or num_test < 1:
        raise UsageError(f"a world needs at least 1 training and 1 test sample, got {num_train} and {num_test}")
    started = time.perf_counter()
    counts = {f"{part}/{split}": _count(part, split, num_train, num_test) for part in PARTS for split in SPLITS}
    with progress(sum(counts.values()), "scenes", unit="sample") as bar:
        for name, count in counts.items():
            part, split = name.split("/")
            make = partial(_MAKERS[part], config, split, seed)
            write_documents(map(make, range(count)), out / part / split, advance=bar.advance)
    num_images = sum(count * (3 if name.startswith("edits/") else 1) for name, count in counts.items())
    return WorldSummary(counts, num_images, time.perf_counter() - started)


def _count(part: str, split: str, num_train: int, num_test: int) -> int:
    if split != "train":
        return num_test
    return num_train if part == "pairs" else max(num_train // 3, 1)


def _picture(image: Image.Image) -> ImageSegment:
    stream = BytesIO()
    image.save(stream, "PNG", compress_level=_PNG_LEVEL)
    return ImageSegment(encoded=stream.getvalue())


def _key(split: str, index: int) -> str:
    return f"{split}-{index:06d}"
