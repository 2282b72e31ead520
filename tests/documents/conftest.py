"""Small pictures and archives that the tests of readers and writers share."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def png() -> Callable[[int], bytes]:
    """A PNG of 12×10 noise, another one for every number."""

    def make(number: int) -> bytes:
        buffer = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture
def tar(tmp_path: Path) -> Callable[..., Path]:
    """Write a tar of the given members (name → bytes, or a list of pairs where a name repeats) and return its path."""

    def make(members: Mapping[str, bytes] | list[tuple[str, bytes]], name: str = "shard.tar") -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w") as archive:
            for member, data in members.items() if isinstance(members, Mapping) else members:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path

    return make
