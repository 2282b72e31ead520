"""Held-out documents, chosen by their id alone: the same ones on every machine, in every order, in every subset."""

from __future__ import annotations

from collections.abc import Iterable

from cm3.core.errors import UsageError
from cm3.core.seeding import derive_seed
from cm3.documents.document import Document


def is_held_out(id: str, fraction: float, seed: int) -> bool:
    """Whether the document called `id` falls into the held-out `fraction` (by SHA-256 of seed and id).

    What follows a "#" does not count: readers number the further captions of one picture so, and they stay together.
    """
    return derive_seed("held out", seed, id.partition("#")[0] or id) < fraction * 2**63


def split_documents(documents: Iterable[Document], fraction: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Split into (train, held_out), each in the order given; about `fraction` of the ids are held out.

    Raises `UsageError` for a fraction outside [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise UsageError(f"the held-out fraction is {fraction}, expected a number from 0 to 1")
    train: list[Document] = []
    held_out: list[Document] = []
    for document in documents:
        (held_out if is_held_out(document.id, fraction, seed) else train).append(document)
    return train, held_out
