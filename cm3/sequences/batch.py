"""`Batch`: packed rows as the model takes them, and how documents become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from cm3.core.errors import UsageError
from cm3.tokens import TokenizedDocument


@dataclass(frozen=True)
class Batch:
    """B rows of T positions; every field is (B, T), int64 but for the float32 weights.

    tokens: input ids, padding included; targets: the next token of the same document (the padding id where there is
    none); loss_weights: weight of predicting the target, 0 at a document's last token and in padding; document_ids: 0
    in padding, 1, 2, … for the documents of a row; positions: restart at 0 in every document; grid_positions: 0, or
    1 + row · w + column for an image token.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    loss_weights: torch.Tensor
    document_ids: torch.Tensor
    positions: torch.Tensor
    grid_positions: torch.Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        return Batch(**{field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)})

    def without_padding(self, step: int) -> Batch:
        """The same documents in one row: (1, M), as they come, without padding but for what fills M up to a multiple of `step`.

        For a model that computes a document at a time. Document ids stay different; with B · T tokens or fewer, M is no more.
        """
        padding = self.document_ids.flatten() == 0
        count = max(1, int((~padding).sum()))  # a row of nothing has no shape
        kept = padding.to(torch.uint8).argsort(stable=True)[: count + -count % step]  # documents first
        rows = torch.arange(len(self.document_ids), device=padding.device)[:, None] * (self.document_ids.max() + 1)
        apart = replace(self, document_ids=torch.where(self.document_ids > 0, self.document_ids + rows, 0))
        return Batch(**{field.name: getattr(apart, field.name).flatten()[None, kept] for field in fields(self)})

    @property
    def num_tokens(self) -> int:
        """Tokens that belong to a document."""
        return int((self.document_ids > 0).sum())


def collate(rows: Sequence[Sequence[TokenizedDocument]], row_length: int, pad_id: int) -> Batch:
    """Lay the documents of each row side by side; a row may be empty. Raises `UsageError` when a row overflows."""
    shape = (len(rows), row_length)
    tokens, targets = np.full(shape, pad_id, np.int64), np.full(shape, pad_id, np.int64)
    document_ids, positions, grid_positions = (np.zeros(shape, np.int64) for _ in range(3))
    loss_weights = np.zeros(shape, np.float32)
    counting = np.arange(row_length)
    for index, row in enumerate(rows):
        start = 0
        for number, document in enumerate(row, start=1):
            stop = start + len(document.token_ids)
            if stop > row_length:
                raise UsageError(f"the documents of a row hold {stop} tokens or more, the row only {row_length}")
            tokens[index, start:stop] = document.token_ids
            targets[index, start : stop - 1] = document.token_ids[1:]
            loss_weights[index, start : stop - 1] = document.loss_weights[1:]
            document_ids[index, start:stop] = number
            positions[index, start:stop] = counting[: stop - start]
            grid_positions[index, start:stop] = document.grid_positions
            start = stop
    arrays = (tokens, targets, loss_weights, document_ids, positions, grid_positions)
    return Batch(*(torch.from_numpy(array) for array in arrays))
