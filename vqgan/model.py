"""The tokenizer as one network: encoder, quantizer, decoder. Single-device, no files, no pictures, no logging.

pixels (B, 3, Y, X) → latents (B, D, h, w) → codes (B, h, w) → quantized (B, D, h, w) → pixels
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from vqgan.config import VQConfig
from vqgan.losses.logit_laplace import mean_pixels
from vqgan.networks import NETWORKS
from vqgan.networks.coders import NoDecoder
from vqgan.quantizers import QUANTIZERS

Result = TypeVar("Result")


@dataclass(frozen=True)
class VQOutput:
    """decoded: what the decoder emits, (B, 3, Y, X) pixels or (B, 6, Y, X) maps of a logit-Laplace likelihood; reconstruction:
    (B, 3, Y, X), not clamped; codes: (B, h, w) int64; quantizer_loss: 0-d; metrics: 0-d each."""

    decoded: Tensor
    reconstruction: Tensor
    codes: Tensor
    quantizer_loss: Tensor
    metrics: dict[str, Tensor]


class VQModel(nn.Module):
    """The network that a `VQConfig` describes, freshly initialized. Convolutions run in channels-last layout."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        coders = NETWORKS.get(config.network)(config)
        self.encoder, self.quant_conv = coders.encoder, coders.to_code
        self.quantizer = QUANTIZERS.get(config.quantizer)(config)
        self.post_quant_conv = coders.from_code
        self.decoder: nn.Module = coders.decoder if config.decoder else NoDecoder()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pixels: Tensor) -> VQOutput:
        """Reconstruct `pixels` through the quantizer, with gradients."""
        result = self._exactly(self.quantizer, pixels)
        decoded = self._decoded(result.quantized)
        return VQOutput(decoded, _pixels(decoded), result.codes, result.loss, result.metrics)

    def latents(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, Y, X) in [-1, 1] → (B, D, h, w), what the quantizer sees."""
        return self.quant_conv(self.encoder(pixels.contiguous(memory_format=torch.channels_last)))

    def reconstruct(self, quantized: Tensor) -> Tensor:
        """(B, D, h, w) → pixels (B, 3, Y, X), not clamped."""
        return _pixels(self._decoded(quantized))

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, Y, X) in [-1, 1] → codes (B, h, w) int64."""
        return self._exactly(self.quantizer.encode, pixels)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) int64 → pixels (B, 3, Y, X), not clamped."""
        return self.reconstruct(self.quantizer.lookup(codes))

    def _exactly(self, quantize: Callable[[Tensor], Result], pixels: Tensor) -> Result:
        """`quantize` of the latents in the dtype of the weights: autocast would round away which vector is nearest."""
        latents = self.latents(pixels)
        known = torch.amp.is_autocast_available(latents.device.type)  # "meta" is not
        with torch.autocast(latents.device.type, enabled=False) if known else nullcontext():
            return quantize(latents.to(next(self.parameters()).dtype))

    def _decoded(self, quantized: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(quantized.contiguous(memory_format=torch.channels_last)))


def _pixels(decoded: Tensor) -> Tensor:
    return mean_pixels(decoded) if decoded.shape[1] == 6 else decoded
