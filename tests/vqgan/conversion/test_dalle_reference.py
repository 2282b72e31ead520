"""Our dVAE against a direct transcription of its published layer list, with weights under the published names."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from vqgan.conversion.convert import convert

Table = dict[str, torch.Tensor]
HIDDEN, GROUPS, BLOCKS, CODES, WIDTH = 8, 3, 2, 16, 6


def _conv(x: torch.Tensor, table: Table, name: str) -> torch.Tensor:
    weight = table[name + ".w"]
    return F.conv2d(x, weight, table[name + ".b"], padding=weight.shape[-1] // 2)


def _run(x: torch.Tensor, table: Table, side: str) -> torch.Tensor:
    x = _conv(x, table, f"{side}.blocks.input")
    for group in range(1, GROUPS + 1):
        for block in range(1, BLOCKS + 1):
            name = f"{side}.blocks.group_{group}.block_{block}"
            h = x
            for number in range(1, 5):
                h = _conv(F.relu(h), table, f"{name}.res_path.conv_{number}")
            x = (_conv(x, table, f"{name}.id_path") if f"{name}.id_path.w" in table else x) + h / (GROUPS * BLOCKS) ** 2
        if group < GROUPS:
            x = F.max_pool2d(x, 2) if side == "encoder" else F.interpolate(x, scale_factor=2)
    return _conv(F.relu(x), table, f"{side}.blocks.output.conv")


def _random_table() -> Table:
    generator = torch.Generator().manual_seed(0)
    table: Table = {}

    def add(name: str, width_in: int, width: int, kernel: int) -> None:
        table[name + ".w"] = torch.randn(width, width_in, kernel, kernel, generator=generator) * (width_in * kernel**2) ** -0.5
        table[name + ".b"] = 0.1 * torch.randn(width, generator=generator)

    widths = [HIDDEN * 2**group for group in range(GROUPS)]
    layouts = {
        "encoder": (3, 7, HIDDEN, widths, (3, 3, 3, 1), CODES),
        "decoder": (CODES, 1, WIDTH, widths[::-1], (1, 3, 3, 3), 6),
    }
    for side, (channels, kernel, first, groups, kernels, outputs) in layouts.items():
        add(f"{side}.blocks.input", channels, first, kernel)
        before = first
        for group, width in enumerate(groups, 1):
            for block in range(1, BLOCKS + 1):
                name = f"{side}.blocks.group_{group}.block_{block}"
                if before != width:
                    add(f"{name}.id_path", before, width, 1)
                sizes = [before, width // 4, width // 4, width // 4, width]
                for number, size in enumerate(kernels):
                    add(f"{name}.res_path.conv_{number + 1}", sizes[number], sizes[number + 1], size)
                before = width
        add(f"{side}.blocks.output.conv", before, outputs, 1)
    return table


@torch.no_grad()
def test_codes_and_pixels_are_those_of_the_published_layers(tmp_path: Path) -> None:
    table = _random_table()
    save_file(table, tmp_path / "dvae.safetensors")
    tokenizer = convert(tmp_path / "dvae.safetensors", tmp_path / "ours", image_size=16)
    unit = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    logits = _run(0.8 * unit + 0.1, table, "encoder")
    codes = tokenizer.encode(unit * 2 - 1)
    assert torch.equal(codes, logits.argmax(1))
    maps = _run(F.one_hot(codes, CODES).permute(0, 3, 1, 2).float(), table, "decoder")
    expected = ((torch.sigmoid(maps[:, :3]) - 0.1) / 0.8).clamp(0, 1)
    assert torch.allclose((tokenizer.decode(codes) + 1) / 2, expected, atol=1e-5)
