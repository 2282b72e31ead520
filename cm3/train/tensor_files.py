"""Tables of named tensors as safetensors files, whole or cut into the row ranges that several processes hold.

    STEM.safetensors                        written by one process
    STEM.rank-00000-of-00002.safetensors    the rows of process 0 of two, and what is not cut

A cut tensor's rows in a file stand in the file's metadata; so any number of processes can read what any other number wrote,
each only the rows it needs. Tied tensors are written once, the other names are kept as aliases. No pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from cm3.train.sharding import Rows, held_rows, local, sharded_like

_ROWS = "@rows"  # metadata key; no parameter name starts with "@"


@dataclass(frozen=True)
class Part:
    """Which of `count` processes writes."""

    index: int = 0
    count: int = 1

    def path(self, folder: Path, stem: str) -> Path:
        """The file this process writes."""
        suffix = "" if self.count == 1 else f".rank-{self.index:05d}-of-{self.count:05d}"
        return folder / f"{stem}{suffix}.safetensors"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], first: bool = True) -> None:
    """Write `tensors` to `path`; of sharded ones the rows held here; tensors that are not sharded only when `first`."""
    owners: dict[tuple[object, ...], str] = {}
    unique: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    rows: dict[str, tuple[int, int]] = {}
    for name, tensor in tensors.items():
        held = local(tensor.detach())
        identity = (held.data_ptr(), held.shape, held.stride(), held.dtype)
        if held.numel() and (owner := owners.setdefault(identity, name)) != name:
            metadata[name] = owner
            continue
        if isinstance(tensor, DTensor):
            rows[name] = held_rows(tensor)
        elif not first:
            continue
        unique[name] = _alone(held)
    if rows:
        metadata[_ROWS] = json.dumps(rows)
    save_file(unique, path, metadata=metadata or None)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of one file as it stands there, aliases included."""
    with safe_open(path, framework="pt") as stream:
        aliases = {name: owner for name, owner in (stream.metadata() or {}).items() if name != _ROWS}
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  (no mapping)
    return tensors | {name: tensors[owner] for name, owner in aliases.items()}


class TensorTable:
    """The table `stem` in `folder`, however many processes wrote it. Raises `FileNotFoundError` when it is not there."""

    def __init__(self, folder: Path, stem: str) -> None:
        self._pieces: dict[str, list[tuple[Path, Rows | None]]] = {}
        self._aliases: dict[str, str] = {}
        paths = [path for path in (folder / f"{stem}.safetensors",) if path.exists()]
        paths = paths or sorted(folder.glob(f"{stem}.rank-*.safetensors"))
        if not paths:
            raise FileNotFoundError(f"{stem}.safetensors is not in {folder}")
        for path in paths:
            with safe_open(path, framework="pt") as stream:
                metadata = dict(stream.metadata() or {})
                rows = json.loads(metadata.pop(_ROWS, "{}"))
                self._aliases |= metadata
                for name in stream.keys():  # noqa: SIM118
                    self._pieces.setdefault(name, []).append((path, tuple(rows[name]) if name in rows else None))

    def names(self) -> list[str]:
        """Every name, aliases included."""
        return [*self._pieces, *(name for name, owner in self._aliases.items() if owner in self._pieces)]

    def read_like(self, name: str, target: Tensor | None) -> Tensor:
        """The tensor `name`: whole, or when `target` is sharded, sharded in the same way, of which only our rows are read."""
        if not isinstance(target, DTensor):
            return self._read(name, None)
        if (stands := self._shape(name)) != tuple(target.shape):
            raise RuntimeError(f"size mismatch for {name}: {stands} stands there, {tuple(target.shape)} expected")
        return sharded_like(target, self._read(name, held_rows(target)))

    def _shape(self, name: str) -> tuple[int, ...]:
        """The shape of the whole tensor."""
        name = self._aliases.get(name, name)
        pieces = self._pieces[name]
        with safe_open(pieces[0][0], framework="pt") as stream:
            first, *others = stream.get_slice(name).get_shape()
        return (max(rows[1] if rows else first for _, rows in pieces), *others)

    def _read(self, name: str, wanted: Rows | None) -> Tensor:
        pieces = self._pieces[self._aliases.get(name, name)]
        parts = [_read_piece(path, self._aliases.get(name, name), rows, wanted) for path, rows in pieces]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _read_piece(path: Path, name: str, rows: Rows | None, wanted: Rows | None) -> Tensor:
    """What one file holds of the rows [start, stop) that are `wanted` (None: of all)."""
    with safe_open(path, framework="pt") as stream:
        if wanted is None:
            return stream.get_tensor(name)
        piece = stream.get_slice(name)
        start, stop = rows or (0, piece.get_shape()[0])
        low, high = max(start, wanted[0]), min(stop, wanted[1])
        return piece[low - start : max(high, low) - start] if low < stop else stream.get_tensor(name)[:0]


def _alone(tensor: Tensor) -> Tensor:
    """The tensor contiguous, on the CPU and the only one on its storage, as safetensors requires; copied only if it must be."""
    tensor = tensor.cpu().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()
