"""Seeds are names: the same path of keys gives the same stream, another path another one."""

from __future__ import annotations

import hashlib

import torch

from cm3.core.seeding import derive_seed, numpy_generator, torch_generator


def test_paths_of_keys_are_distinct() -> None:
    paths = [(0,), (1,), ("0",), (0, 1), ("0\x1f1",), (0, "1"), (1, 0), ("a", "b"), ("ab",), ()]
    assert len({derive_seed(*path) for path in paths}) == len(paths)
    assert all(0 <= derive_seed(*path) < 2**63 for path in paths)


def test_streams_are_reproducible() -> None:
    assert numpy_generator(3, "x").integers(1 << 30) == numpy_generator(3, "x").integers(1 << 30)
    first, second = (torch.rand(3, generator=torch_generator(3, "x")) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.rand(3, generator=torch_generator(4, "x")))


def test_the_seed_is_pinned_across_versions() -> None:
    digest = hashlib.sha256(b"int:0\x1fstr:train\x1fint:1").digest()
    assert derive_seed(0, "train", 1) == int.from_bytes(digest[:8], "big") >> 1
