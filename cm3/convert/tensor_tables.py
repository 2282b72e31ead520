"""Tables of tensors on disk: opened without reading them, and written shard by shard.

Reading goes through the memory map of safetensors, writing holds one shard at a time, so a model of any size passes through
about two gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cm3.core.artefact import read_json, write_json
from cm3.core.errors import ArtefactError

SHARD_BYTES = 2 * 1024**3
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class SafetensorsTable(Mapping[str, Tensor]):
    """The tensors of all safetensors files of a folder; each is read when it is looked up.

    Raises `ArtefactError` when there is none, one is damaged, or a file that the index names is missing.
    """

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*.safetensors"))
        if (folder / INDEX).exists():
            weight_map = read_json(folder / INDEX).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
                raise ArtefactError(f"{folder / INDEX} has no weight_map from names to files; download it again")
            files = [folder / name for name in sorted(set(weight_map.values()))]
        if missing := [file for file in files if not file.is_file()]:
            raise ArtefactError(f"{missing[0]} is missing, which {INDEX} names; download the checkpoint completely")
        if not files:
            raise ArtefactError(f"{folder} holds no .safetensors file; download the weights, or name another folder")
        self._handles: list[Any] = [_opened(file) for file in files]
        self._home = {name: (file, handle) for file, handle in zip(files, self._handles) for name in handle.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        file, handle = self._home[name]
        try:
            return handle.get_tensor(name)
        except SafetensorError as error:
            raise ArtefactError(f"{file}: {name} cannot be read: {error}; download the file again") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)


class RenamedTable(Mapping[str, Tensor]):
    """A table whose entries are made when looked up: name → function that reads and reshapes what it needs."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def write_sharded(tensors: Iterable[tuple[str, Tensor]], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors in the layout of transformers: `model.safetensors`, or numbered shards with an index.

    No more than `shard_bytes` (and one tensor) are held at a time.
    """
    shards: list[list[str]] = []
    current: dict[str, Tensor] = {}
    total = size = 0
    for name, tensor in tensors:
        if current and size + tensor.nbytes > shard_bytes:
            shards.append(_flush(current, folder, len(shards)))
            current, size = {}, 0
        current[name] = _owning(tensor)
        size, total = size + tensor.nbytes, total + tensor.nbytes
    shards.append(_flush(current, folder, len(shards)))
    if len(shards) == 1:
        _part(folder, 0).rename(folder / WEIGHTS)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        final = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        _part(folder, number).rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _flush(tensors: dict[str, Tensor], folder: Path, number: int) -> list[str]:
    save_file(tensors, _part(folder, number), metadata={"format": "pt"})
    return list(tensors)


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.safetensors"


def _owning(tensor: Tensor) -> Tensor:
    """The tensor with a storage of its own: a view into a larger one would be refused."""
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"{file} is no readable safetensors file: {error}; download it again") from None
