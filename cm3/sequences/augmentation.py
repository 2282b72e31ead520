"""Retrieval augmentation: neighbor documents before the target, inside one `<bos> … <eos>`.

    <bos> neighbor segments <break> … <break> target segments <eos>

A budgeter drops whole neighbors, never half a picture. Laws of how many: "cm3leon" picks three of the retrieved
documents at random (arXiv:2309.02591), "ra_cm3" the nearest K with K uniform in {0, 1, 2} (arXiv:2211.12561), "all"
takes every one. The neighbors' tokens weigh 1 in the former paper and 0.1 in the latter; `neighbor_weight` is 1 for
every law unless it is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from pydantic import ConfigDict, Field

from cm3.core.errors import UsageError
from cm3.core.runfile import RunConfig
from cm3.core.seeding import numpy_generator
from cm3.sequences.sources import Source
from cm3.tokens import Span, TokenizedDocument, Vocab

NeighborLaw = Literal["cm3leon", "ra_cm3", "all"]
NO_NEIGHBOR = -1
_CM3LEON_PICKS = 3
_RA_CM3_MOST = 2


class AugmentationConfig(RunConfig):
    """law: how many neighbors a document gets; neighbor_weight: loss weight of their tokens; max_length: tokens of the
    whole sequence (leave room for three tokens per masked span below the row length)."""

    model_config = ConfigDict(allow_inf_nan=False)

    law: NeighborLaw = "cm3leon"
    neighbor_weight: float = Field(default=1.0, ge=0)
    max_length: int = Field(default=1024, ge=8)


def augment(
    document: TokenizedDocument,
    neighbors: Sequence[TokenizedDocument],
    vocab: Vocab,
    max_length: int,
    neighbor_weight: float = 1.0,
) -> TokenizedDocument:
    """`document` with those of `neighbors` before it that fit `max_length`, in the order given.

    The neighbors' tokens, and the `<break>` that closes each of their segments, weigh `neighbor_weight` times what they
    did. Raises `UsageError` when the document alone is longer than `max_length`.
    """
    if len(document) > max_length:
        raise UsageError(f"document {document.id!r} has {len(document)} tokens, more than max_length={max_length}")
    lengths = np.array([[len(neighbor) for neighbor in neighbors]], np.int64)
    fits = fit_neighbors(np.array([len(document)]), lengths, max_length)[0]
    kept = [neighbor for neighbor, fit in zip(neighbors, fits) if fit]
    return _join(document, kept, vocab, neighbor_weight) if kept else document


def fit_neighbors(lengths: np.ndarray, neighbor_lengths: np.ndarray, max_length: int) -> np.ndarray:
    """Which neighbors fit beside documents of `lengths` (N,): bool (N, K) for `neighbor_lengths` (N, K), 0 for none.

    They are taken in order of their columns; one that does not fit is dropped whole, and the next one is tried.
    """
    total = lengths.copy()
    fits = np.zeros(neighbor_lengths.shape, bool)
    for column in range(neighbor_lengths.shape[1]):
        added = neighbor_lengths[:, column] - 1  # its <bos> and <eos> go, a <break> comes
        fits[:, column] = (added >= 0) & (total + added <= max_length)
        total = total + np.where(fits[:, column], added, 0)
    return fits


def draw_neighbors(table: np.ndarray, rng: np.random.Generator, law: NeighborLaw) -> np.ndarray:
    """Of the retrieved documents in `table` (N, K), nearest first, `NO_NEIGHBOR` where there are fewer: those to use.

    Returns (N, K) with `NO_NEIGHBOR` for what was not drawn; ranks keep their order.
    """
    size, ranks = table.shape
    present = table != NO_NEIGHBOR
    if law == "cm3leon":
        keys = np.where(present, rng.random((size, ranks)), np.inf)
        chosen = keys.argsort(axis=1).argsort(axis=1) < _CM3LEON_PICKS
    elif law == "ra_cm3":
        chosen = present.cumsum(axis=1) <= rng.integers(0, _RA_CM3_MOST + 1, (size, 1))
    else:
        chosen = present
    return np.where(chosen & present, table, NO_NEIGHBOR)


class AugmentedSource:
    """Documents with neighbors drawn anew in every epoch; a `Source` for the loader.

    targets: the documents; memory: the documents neighbors are taken from; table: (N, K) int, for each target the
    indices into `memory`, nearest first, `NO_NEIGHBOR` where there are fewer. The draw is a function of (seed, epoch).
    """

    def __init__(
        self, targets: Source, memory: Source, table: np.ndarray, vocab: Vocab, config: AugmentationConfig, seed: int
    ) -> None:
        if table.ndim != 2 or len(table) != len(targets):
            raise UsageError(f"the neighbor table has shape {table.shape}, expected ({len(targets)}, K), one row per document")
        self._targets, self._memory, self._table = targets, memory, table
        self._vocab, self._config, self._seed = vocab, config, seed
        self._drawn = lru_cache(maxsize=2)(self._draw)

    def __len__(self) -> int:
        return len(self._targets)

    def lengths(self, epoch: int) -> np.ndarray:
        """(N,) int64: lengths with the neighbors of this epoch."""
        return self._drawn(epoch)[1]

    def document(self, index: int, epoch: int) -> TokenizedDocument:
        """Document `index` behind its neighbors of this epoch."""
        picks = self._drawn(epoch)[0][index]
        neighbors = [self._memory.document(int(pick), epoch) for pick in picks if pick != NO_NEIGHBOR]
        document = self._targets.document(index, epoch)
        return _join(document, neighbors, self._vocab, self._config.neighbor_weight) if neighbors else document

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        picks = draw_neighbors(self._table, numpy_generator(self._seed, "neighbors", epoch), self._config.law)
        sizes = np.where(picks == NO_NEIGHBOR, 0, self._memory.lengths(epoch)[picks])  # (N, K)
        lengths = self._targets.lengths(epoch)
        fits = fit_neighbors(lengths, sizes, self._config.max_length)
        return np.where(fits, picks, NO_NEIGHBOR), lengths + np.where(fits, sizes - 1, 0).sum(axis=1)


def _join(
    document: TokenizedDocument, neighbors: Sequence[TokenizedDocument], vocab: Vocab, neighbor_weight: float
) -> TokenizedDocument:
    token_ids, grid, weights, spans = [document.token_ids[:1]], [document.grid_positions[:1]], [document.loss_weights[:1]], []
    shift = 0
    for neighbor in neighbors:
        body = neighbor.token_ids[1:].copy()  # (T − 1,)
        body[-1] = vocab.break_id  # its <eos> becomes the <break> before what follows
        token_ids.append(body)
        grid.append(neighbor.grid_positions[1:])
        weights.append(neighbor.loss_weights[1:] * np.float32(neighbor_weight))
        spans += [Span(kind, start + shift, stop + shift) for kind, start, stop in neighbor.spans]
        shift += len(body)
    spans += [Span(kind, start + shift, stop + shift) for kind, start, stop in document.spans]
    pieces = ([*token_ids, document.token_ids[1:]], [*grid, document.grid_positions[1:]], [*weights, document.loss_weights[1:]])
    joined_ids, joined_grid, joined_weights = (np.concatenate(arrays) for arrays in pieces)
    return TokenizedDocument(document.id, joined_ids, joined_grid, tuple(spans), joined_weights)
