"""Best-fit decreasing bin packing: many short documents into few rows of one length, none cut, none lost."""

from __future__ import annotations

import numpy as np

from cm3.core.errors import UsageError


def pack(lengths: np.ndarray, row_length: int) -> list[list[int]]:
    """Assign documents to rows: a list of rows, each the indices into `lengths` (N,) it holds, in the order given.

    The longest document is placed first, each into the row where the least room is left over; a new row is opened when
    none has room. Equal lengths keep their order, so the result is a function of `lengths` alone. Raises `UsageError`
    for a document longer than a row.
    """
    _require_room(lengths, row_length)
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(row_length + 1)]  # free tokens → rows with exactly that many
    rooms = 0  # bit f is set when some row has f free tokens: the tightest fit is the lowest set bit from `length` up
    order = np.argsort(-lengths, kind="stable")
    for index, length in zip(order.tolist(), lengths[order].tolist()):
        fitting = rooms >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            row = with_room[free].pop()
            if not with_room[free]:
                rooms ^= 1 << free
            rows[row].append(index)
        else:
            free, row = row_length, len(rows)
            rows.append([index])
        left = free - length
        with_room[left].append(row)
        rooms |= 1 << left
    return [sorted(row) for row in rows]


def count_rows(lengths: np.ndarray, row_length: int) -> int:
    """`len(pack(lengths, row_length))`, a length at a time instead of a document at a time.

    A row that takes a document stays the tightest one for the next of that length, so rows with equally much room are filled
    together, each with as many documents as it has room for.
    """
    _require_room(lengths, row_length)
    rows = 0
    with_room = [0] * (row_length + 1)  # free tokens → how many rows have exactly that many
    rooms = 0
    found, counts = np.unique(lengths, return_counts=True)
    for length, count in zip(found[::-1].tolist(), counts[::-1].tolist()):
        while count:
            if fitting := rooms >> length:
                free = length + (fitting & -fitting).bit_length() - 1
                number = with_room[free]
            else:
                free, number = row_length, -(-count // (row_length // length))
                rows += number
                with_room[free] += number
            each = free // length
            full = min(number, count // each)
            for many, taken in ((full, each), (int(full < number), count - full * each)):  # full rows, and one with the rest
                if many and taken:
                    with_room[free] -= many
                    with_room[free - taken * length] += many
                    rooms |= 1 << (free - taken * length)
                    count -= many * taken
            rooms = rooms | 1 << free if with_room[free] else rooms & ~(1 << free)
    return rows


def _require_room(lengths: np.ndarray, row_length: int) -> None:
    if len(lengths) and int(lengths.max()) > row_length:
        raise UsageError(f"a document of {int(lengths.max())} tokens does not fit a row of {row_length}; use longer rows")
