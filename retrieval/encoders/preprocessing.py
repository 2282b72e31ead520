"""Pictures to the pixels a CLIP vision tower was trained on: resize, center crop, rescale, normalize, by PIL and NumPy.

Follows `CLIPImageProcessorPil` of transformers to the last step of rounding (tests compare within 1e-5), reads and writes
its `preprocessor_config.json`, and needs neither torchvision nor transformers. The configuration travels with the encoder,
so training and inference cannot disagree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cm3.core.errors import ArtefactError
from cm3.documents.images import decode_image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Preprocessing:
    """The steps and their numbers.

    shortest_edge: resize so that the shorter side has this many pixels; None: resize to `height` × `width` regardless of aspect.
    crop: (height, width) of the center crop, smaller pictures are padded with zeros; None: no crop.
    resample: a PIL filter number (3 is bicubic). rescale: factor to [0, 1]. mean, std: per channel, after rescaling.
    """

    shortest_edge: int | None = 224
    height: int = 224
    width: int = 224
    crop: tuple[int, int] | None = (224, 224)
    resample: int = 3
    rescale: float = 1 / 255
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @classmethod
    def square(cls, size: int) -> Preprocessing:
        """Shorter side to `size`, then the middle `size` × `size` of the picture."""
        return cls(shortest_edge=size, height=size, width=size, crop=(size, size))

    @classmethod
    def load(cls, folder: Path) -> Preprocessing:
        """Read the configuration of an image processor in `folder`. Raises `ArtefactError` if there is none or it is unusable."""
        for name in _FILES:
            if (folder / name).is_file():
                try:
                    raw = json.loads((folder / name).read_text("utf-8"))
                    return _from_json(raw.get("image_processor", raw))
                except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                    raise ArtefactError(f"{folder / name} cannot be used as image preprocessing: {error}") from None
        raise ArtefactError(f"{folder} has no {_FILES[0]}: without it nobody knows which pixels the encoder expects")

    @property
    def shape(self) -> tuple[int, int]:
        """(Y, X) of the pixels; for a picture that is only resized by its shorter side they would depend on the picture."""
        return self.crop or (self.height, self.width)

    def to_json(self) -> dict[str, Any]:
        """The configuration in the names of transformers' `CLIPImageProcessor`."""
        values = asdict(self)
        resized = {"height": self.height, "width": self.width}
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": resized if self.shortest_edge is None else {"shortest_edge": self.shortest_edge},
            "resample": self.resample,
            "do_center_crop": self.crop is not None,
            "crop_size": resized if self.crop is None else {"height": self.crop[0], "width": self.crop[1]},
            "do_rescale": True,
            "rescale_factor": self.rescale,
            "do_normalize": True,
            "image_mean": list(values["mean"]),
            "image_std": list(values["std"]),
        }

    def frame(self, image: Image.Image) -> np.ndarray:
        """One picture of any mode → the resized and cropped picture, (Y, X, 3) uint8."""
        rgb = decode_image(image)
        framed = np.asarray(rgb.resize(self._resized(rgb), resample=Image.Resampling(self.resample)))
        return framed if self.crop is None else _center_crop(framed, self.crop)

    def normalize(self, frames: np.ndarray) -> np.ndarray:
        """Framed pictures (N, Y, X, 3) uint8 → pixels (N, 3, Y, X) float32."""
        scaled = (frames.astype(np.float64) * self.rescale).astype(np.float32)
        pixels = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))  # (N, 3, Y, X)

    def pixels(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Pictures → pixels (N, 3, Y, X) float32 for the vision tower."""
        return self.normalize(np.stack([self.frame(image) for image in images]))

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        if self.shortest_edge is None:
            return self.width, self.height
        short, long = sorted(image.size)
        longer = int(self.shortest_edge * long / short)
        return (self.shortest_edge, longer) if image.width <= image.height else (longer, self.shortest_edge)


def _center_crop(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of (Y, X, 3); where the picture is smaller, zeros stand around it."""
    for axis, wanted in enumerate(size):
        have = picture.shape[axis]
        if have < wanted:
            before = -(-(wanted - have) // 2)
            widths = [(0, 0)] * picture.ndim
            widths[axis] = (before, wanted - have - before)
            picture = np.pad(picture, widths)
        start = max(0, (have - wanted) // 2)
        picture = np.take(picture, range(start, start + wanted), axis=axis)
    return picture


def _from_json(raw: Mapping[str, Any]) -> Preprocessing:
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if raw.get(step, True) is not True:
            raise ValueError(f"{step} is off; only encoders that resize, rescale and normalize are supported")
    size, crop = raw["size"], raw.get("crop_size")
    if isinstance(size, int):
        size = {"shortest_edge": size}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    shortest = size.get("shortest_edge")
    return Preprocessing(
        shortest_edge=None if shortest is None else int(shortest),
        height=int(size.get("height", shortest)),
        width=int(size.get("width", shortest)),
        crop=(int(crop["height"]), int(crop["width"])) if crop and raw.get("do_center_crop", False) else None,
        resample=int(raw.get("resample", 3)),
        rescale=float(raw.get("rescale_factor", 1 / 255)),
        mean=tuple(map(float, raw["image_mean"])),
        std=tuple(map(float, raw["image_std"])),
    )
