"""The trained tokenizer as users hold it: pictures, codes, and the folder it lives in.

Folder (an artefact of kind "image_tokenizer"): config.json (`VQConfig`), model.safetensors, manifest.json.
`VQTokenizer` fulfils `cm3.core.protocols.ImageTokenizer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cm3.core.artefact import read_json, verify, write_json, writing
from cm3.core.errors import ArtefactError, InputError
from cm3.core.protocols import ImageTokenizer
from cm3.documents.document import ImageSegment
from cm3.documents.reasons import RecordError, RejectReason
from vqgan.config import VQConfig, checked
from vqgan.model import VQModel
from vqgan.preprocessing import images_to_pixels, pixels_to_images

KIND = "image_tokenizer"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class VQTokenizer:
    """An image tokenizer: `model` in evaluation mode on its device, and the preprocessing stored with it."""

    def __init__(self, model: VQModel) -> None:
        self.model = model.eval().requires_grad_(False)
        self.config = model.config

    @property
    def codebook_size(self) -> int:
        """Number of codes K."""
        return self.config.codebook_size

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Code rows and columns (h, w) of one picture."""
        return self.config.grid_shape

    @property
    def image_size(self) -> int:
        """Pixels on a side of a picture."""
        return self.config.image_size

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    @property
    def codebook(self) -> Tensor:
        """(K, D) float32: the code vectors, for starting embeddings from."""
        return self.model.quantizer.codebook().detach().float()

    def to(self, device: torch.device | str) -> VQTokenizer:
        """Move the network; returns the tokenizer."""
        self.model.to(device)
        return self

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """PIL pictures of any size and mode → pixels (B, 3, Y, X) float32 in [-1, 1], by the stored policy.

        Orientation and transparency are those of training. Raises `ImageError` for a picture that cannot be decoded.
        """
        return images_to_pixels(images, self.image_size, self.config.preprocessing)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, Y, X) float in [-1, 1] → codes (B, h, w) int64. Raises `InputError` for another shape."""
        expected = (3, self.image_size, self.image_size)
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != expected or not pixels.is_floating_point():
            raise InputError(
                f"pixels must be float of shape (B, {', '.join(map(str, expected))}), got {pixels.dtype} "
                f"{tuple(pixels.shape)}; use preprocess() for pictures of other sizes"
            )
        if pixels.shape[0] == 0:
            return torch.empty(0, *self.grid_shape, dtype=torch.int64, device=self.device)
        return self.model.encode(pixels.to(self.device, torch.float32)).clone()

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) int64 → pixels (B, 3, Y, X) float32 in [-1, 1]. Raises `InputError` for wrong codes,
        and without a decoder."""
        if codes.ndim != 3 or codes.is_floating_point() or tuple(codes.shape[1:]) != self.grid_shape:
            expected = f"(B, {self.grid_shape[0]}, {self.grid_shape[1]})"
            raise InputError(f"codes must be integers of shape {expected}, got {codes.dtype} {tuple(codes.shape)}")
        if codes.shape[0] == 0:
            return torch.empty(0, 3, self.image_size, self.image_size, device=self.device)
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.codebook_size:
            raise InputError(f"codes must lie in [0, {self.codebook_size}), got values from {low} to {high}")
        return self.model.decode(codes.to(self.device, torch.int64)).float().clamp(-1, 1).contiguous()

    def postprocess(self, pixels: Tensor) -> list[Image.Image]:
        """Pixels (B, 3, Y, X) float in [-1, 1] → RGB pictures."""
        return pixels_to_images(pixels)

    def save(self, path: Path | str, provenance: Mapping[str, Any] | None = None) -> Path:
        """Write the folder (see the module text) whole or not at all; returns its path."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        with writing(path, kind=KIND, provenance=provenance) as folder:
            write_json(folder / CONFIG_FILE, self.config.model_dump(mode="json"))
            save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        return Path(path)


def from_pretrained(path: Path | str, device: torch.device | str = "cpu", check: bool = True) -> VQTokenizer:
    """The tokenizer in folder `path`, on `device`. `check=False` skips the hashes of the files.

    Raises `ArtefactError` when the folder is damaged, incomplete or of another kind, its weights don't fit
    its configuration, or hold NaN.
    """
    path = Path(path)
    verify(path, kind=KIND, hashes=check)
    config = checked(VQConfig, read_json(path / CONFIG_FILE), f"{path / CONFIG_FILE}")
    try:
        state = load_file(path / WEIGHTS_FILE)
    except SafetensorError as error:
        raise ArtefactError(f"{path / WEIGHTS_FILE} is no readable safetensors file: {error}") from None
    model = VQModel(config)
    load_weights(model, state, str(path / WEIGHTS_FILE))
    return VQTokenizer(model.to(device))


def check_codes(segment: ImageSegment, tokenizer: ImageTokenizer) -> None:
    """Raise `RecordError` (wrong_codes) unless the codes of `segment` are some that `tokenizer` has."""
    codes = segment.codes
    if codes is None:
        raise RecordError(RejectReason.MISSING_IMAGE, "the segment holds neither a picture nor codes")
    if codes.shape != tokenizer.grid_shape or codes.min() < 0 or codes.max() >= tokenizer.codebook_size:
        raise RecordError(
            RejectReason.WRONG_CODES,
            f"codes of shape {codes.shape} from {codes.min()} to {codes.max()}, expected {tokenizer.grid_shape} in "
            f"[0, {tokenizer.codebook_size}); use the tokenizer that made the codes",
        )


def load_weights(model: VQModel, state: Mapping[str, Tensor], source: str) -> None:
    """Put `state` into `model`. Raises `ArtefactError` naming the first keys and shapes that differ, or a tensor with NaN."""
    own = model.state_dict()
    missing = [f"{name} is missing" for name in own if name not in state]
    surplus = [f"{name} is not expected" for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems := shapes + missing + surplus:
        first = "; ".join(problems[:5])
        raise ArtefactError(f"{source} doesn't fit its configuration ({len(problems)} differences): {first}")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ArtefactError(f"{source}: {name} holds values that are not finite; these weights can't be used")
    model.load_state_dict(dict(state))
