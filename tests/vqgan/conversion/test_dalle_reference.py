"""Our dVAE against a direct transcription of its published layer list, and its release files: whole pickled modules."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from cm3.core.errors import ArtefactError, InputError
from vqgan.conversion.convert import convert

Table = dict[str, torch.Tensor]
HIDDEN, GROUPS, BLOCKS, CODES, WIDTH = 8, 3, 2, 16, 6
NAMES = {
    "dall_e.encoder": ("Encoder", "EncoderBlock"),
    "dall_e.decoder": ("Decoder", "DecoderBlock"),
    "dall_e.utils": ("Conv2d",),
}


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


def _pickled(table: Table, folder: Path, monkeypatch: pytest.MonkeyPatch, extra: object = None, legacy: bool = False) -> None:
    """Both files as OpenAI's package writes them; the package is gone afterwards."""
    folder.mkdir()
    kinds = {name: type(name, (nn.Module,), {"__module__": module}) for module, names in NAMES.items() for name in names}
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "dall_e", ModuleType("dall_e"))
        for module, names in NAMES.items():
            patched.setitem(sys.modules, module, ModuleType(module))
            for name in names:
                setattr(sys.modules[module], name, kinds[name])
        for side in ("encoder", "decoder"):
            whole = _module(table, side, kinds)
            whole.n_hid, whole.device, whole.extra = 8, torch.device("cpu"), extra  # type: ignore[assignment]
            torch.save(whole, folder / f"{side}.pkl", _use_new_zipfile_serialization=not legacy)


def _module(table: Table, path: str, kinds: dict[str, type[nn.Module]]) -> nn.Module:
    """The module at `path` of the table, with the layers that have no weights at their places."""
    last = path.rsplit(".", 1)[-1]
    side = path.split(".", 1)[0].title()
    parts = list(dict.fromkeys(name[len(path) + 1 :].split(".")[0] for name in table if name.startswith(path + ".")))
    if "w" in parts:
        made = kinds["Conv2d"]()
        made.w, made.b = (nn.Parameter(table[f"{path}.{name}"], requires_grad=False) for name in "wb")
        return made
    made = kinds[side]() if path == side.lower() else kinds[f"{side}Block"]() if last.startswith("block_") else nn.Sequential()
    if last.startswith("block_") and "id_path" not in parts:
        made.add_module("id_path", nn.Identity())
    for part in parts:
        if part.startswith("conv"):
            made.add_module(part.replace("conv", "relu"), nn.ReLU())
        made.add_module(part, _module(table, f"{path}.{part}", kinds))
    if last.startswith("group_") and last != f"group_{GROUPS}":
        made.add_module("resample", nn.MaxPool2d(2) if side == "Encoder" else nn.Upsample(scale_factor=2))
    return made


@torch.no_grad()
def test_pickled_modules_are_the_tokenizer_of_their_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = _random_table()
    save_file(table, tmp_path / "dvae.safetensors")
    _pickled(table, tmp_path / "release", monkeypatch)
    expected = convert(tmp_path / "dvae.safetensors", tmp_path / "a", image_size=16)
    tokenizer = convert(tmp_path / "release", tmp_path / "b", image_size=16)
    assert "dall_e" not in sys.modules
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    codes = tokenizer.encode(pixels)
    assert torch.equal(codes, expected.encode(pixels))
    assert torch.equal(tokenizer.decode(codes), expected.decode(codes))


def test_what_is_no_such_pair_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = _random_table()
    _pickled(table, tmp_path / "code", monkeypatch, extra=Path("code"))
    with pytest.raises(ArtefactError, match=r"encoder\.pkl holds more than tensors and is not opened \(.*pathlib"):
        convert(tmp_path / "code", tmp_path / "out")
    with pytest.warns(UserWarning, match="source code"):  # the form before torch 1.6 holds that, and is refused for it
        _pickled(table, tmp_path / "old", monkeypatch, legacy=True)
    with pytest.raises(ArtefactError, match=r"encoder\.pkl holds more than tensors.*\(Only persistent_load of storage"):
        convert(tmp_path / "old", tmp_path / "out")
    torch.save(table, tmp_path / "code" / "encoder.pkl")
    with pytest.raises(ArtefactError, match="holds no pickled encoder of OpenAI's dVAE"):
        convert(tmp_path / "code", tmp_path / "out")
    with pytest.raises(InputError, match=r"half of a tokenizer; name the folder that holds encoder\.pkl and decoder\.pkl"):
        convert(tmp_path / "code" / "decoder.pkl", tmp_path / "out")
    (tmp_path / "code" / "encoder.pkl").unlink()
    with pytest.raises(InputError, match=r"holds no encoder\.pkl"):
        convert(tmp_path / "code", tmp_path / "out")
