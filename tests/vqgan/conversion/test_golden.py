"""Converted checkpoints against numbers from the original repositories.

`tests/golden/vqgan/NAME.safetensors` holds latents, codes and pixels that the original classes gave once (the file's metadata
names repository, commit and class), in fp32 on a CPU under torch 2.13, and the names and shapes of their parameters. Those were
filled by `seeded_tensor`, so the weights need not be stored, and the pictures are `seeded_tensor("pixels", …)` under tanh.
Sizes were given to the originals' constructors (LlamaGen's fixed width of 128 by building its Encoder and Decoder with 32).
Nothing of those repositories is needed, or kept, here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vqgan.conversion.convert import convert

GOLDEN = Path(__file__).parents[2] / "golden" / "vqgan"
NAMES = ("taming", "taming-gumbel", "ldm", "chameleon", "llamagen", "dalle")
WRAPPERS = {
    "taming": "state_dict",
    "taming-gumbel": "state_dict",
    "ldm": "state_dict",
    "chameleon": "state_dict",
    "llamagen": "model",
}
Seeded = Callable[[str, tuple[int, ...]], torch.Tensor]


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_latents_codes_and_pixels_are_the_originals(name: str, tmp_path: Path, seeded_tensor: Seeded) -> None:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as golden:
        notes = golden.metadata()
        latents, codes, pixels = (golden.get_tensor(key) for key in ("latents", "codes", "pixels"))
    size = int(notes["image_size"])
    table = {key: seeded_tensor(key, tuple(shape)) for key, shape in json.loads(notes["shapes"]).items()}
    source = tmp_path / ("last.ckpt" if name in WRAPPERS else "dvae.safetensors")
    if name in WRAPPERS:
        torch.save({WRAPPERS[name]: table}, source)
    else:
        save_file(table, source)
    tokenizer = convert(source, tmp_path / "ours", image_size=size)
    assert tokenizer.config.grid_shape == tuple(codes.shape[1:])
    pictures = torch.tanh(seeded_tensor("pixels", (len(codes), 3, size, size)) * math.sqrt(3 * size * size))
    ours = tokenizer.model.latents(pictures)
    assert float((ours - latents).abs().max()) <= 1e-5
    assert torch.equal(tokenizer.encode(pictures), codes.long())
    assert float((tokenizer.model.decode(codes.long()) - pixels).abs().max()) <= 1e-5
