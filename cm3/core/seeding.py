"""Seeds as names: every random draw of the project comes from a generator made for that draw.

`torch_generator(seed, "sampler", row)` gives the same stream on every run and machine, independent of what else was
drawn before, so there is no global random state to save, restore or disturb.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(*keys: int | str) -> int:
    """A 63-bit seed from a path of keys; different paths give independent seeds (SHA-256)."""
    path = "\x1f".join(f"{type(key).__name__}:{key}" for key in keys)
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") >> 1


def numpy_generator(*keys: int | str) -> np.random.Generator:
    """A NumPy generator for host-side draws (scenes, masks, order), keyed by `keys`."""
    return np.random.Generator(np.random.PCG64(derive_seed(*keys)))


def torch_generator(*keys: int | str, device: str = "cpu") -> torch.Generator:
    """A torch generator for draws on model tensors, keyed by `keys`."""
    import torch

    generator = torch.Generator(device=device)
    generator.manual_seed(derive_seed(*keys))
    return generator
