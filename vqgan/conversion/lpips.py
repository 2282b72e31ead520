"""The weight file for `vqgan.losses.lpips` from the two files people have: VGG16 of torchvision, and LPIPS's own `vgg.pth`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cm3.core.artefact import storage_errors
from cm3.core.errors import ArtefactError
from vqgan.conversion.checkpoints import read_tensors
from vqgan.losses.lpips import LPIPS, STAGES


def convert_lpips(vgg: Path | str, lins: Path | str, out: Path | str) -> Path:
    """Join torchvision's VGG16 `vgg` (`features.N.*`) and LPIPS's `lins` (`linK.model.1.weight`) into safetensors file `out`.

    Raises `ArtefactError` naming the first tensor that is missing, has another shape, or values that are not finite.
    """
    backbone, heads = read_tensors(Path(vgg)), read_tensors(Path(lins))
    state: dict[str, Tensor] = {}
    for name, tensor in LPIPS().state_dict().items():
        if name.startswith("features."):
            state[name] = _take(backbone, name, tuple(tensor.shape), vgg)
        else:
            number = int(name.removeprefix("lins."))
            head = _take(heads, f"lin{number}.model.1.weight", (1, STAGES[number][-1], 1, 1), lins)
            state[name] = head.flatten()
    out = Path(out)
    with storage_errors(out):
        save_file({name: tensor.float().contiguous().clone() for name, tensor in state.items()}, out, metadata={"format": "pt"})
    return out


def _take(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], source: Path | str) -> Tensor:
    if name not in tensors:
        raise ArtefactError(f"{source} has no tensor {name!r}; expected the weights of VGG16 and of LPIPS on VGG16")
    if tuple(tensors[name].shape) != shape:
        raise ArtefactError(f"{source}: {name} is {tuple(tensors[name].shape)}, expected {shape}; these are other weights")
    if not torch.isfinite(tensors[name]).all():
        raise ArtefactError(f"{source}: {name} holds values that are not finite; these weights can't be used")
    return tensors[name]
