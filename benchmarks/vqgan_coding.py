"""Encoding and decoding pictures of 256 × 256: ours against the same network as a plain module, and against transformers.

Both peers run the same weights on the same pictures in fp32: `plain` is our network as it is usually written, with tensors in
PyTorch's default layout (ours runs channels-last), `transformers` is `JanusVQVAE` opened from our export. The network is the f16
VQGAN at half its published width, so that the benchmark takes a minute on one core. Gate: equal codes but for 1 in 1000, and
pictures from equal codes at 60 dB and more. First one picture on one thread in processor time, beside the limit: the time its
multiplications take at the rate of a large matrix product in the same run. Then four pictures on all cores, as
`cm3 vqgan encode` runs, by the clock.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import process_time

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import JanusVQVAE

from benchmarks.measure import Row, interleaved, report, time_row
from cm3.core.seeding import torch_generator
from cm3.metrics.images import psnr
from vqgan.config import VQConfig
from vqgan.conversion.convert import export
from vqgan.model import VQModel
from vqgan.networks.taming import _ResidualBlock
from vqgan.presets import preset
from vqgan.tokenizer import VQTokenizer

SIDE, REPEATS, BATCH = 256, 5, 4


@dataclass(frozen=True)
class Peer:
    """encode: pixels (B, 3, Y, X) → codes (B, h, w); decode: codes → pixels."""

    name: str
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


def network(channels: int) -> VQModel:
    """The f16 VQGAN with 8-dimensional codes at `channels`, random weights; code vectors far enough apart to tell them apart."""
    config = preset("llamagen-16")
    options = {**config.network_options, "channels": channels, "latent_channels": 2 * channels}
    changes = {"network_options": options, "quantizer": "vq", "quantizer_options": {"unit_lookup": True}}
    torch.manual_seed(0)
    model = VQModel(VQConfig.model_validate(config.model_dump() | changes)).eval().requires_grad_(False)
    model.quantizer.embedding.weight.normal_()
    return model


def plain(model: VQModel) -> Peer:
    """The same weights in the default layout and as such networks are usually written: nothing in place, interpolation before
    the convolution."""
    twin = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for block in twin.modules():
        if isinstance(block, _ResidualBlock):
            block.forward = partial(plain_residual, block)  # type: ignore[method-assign]
    for level in twin.decoder.up:
        if hasattr(level, "upsample"):
            level.upsample = torch.nn.Sequential(torch.nn.Upsample(scale_factor=2.0, mode="nearest"), level.upsample.conv)
    return Peer(
        "a plain module",
        lambda pixels: twin.quantizer.encode(twin.quant_conv(twin.encoder(pixels))),
        lambda codes: twin.decoder(twin.post_quant_conv(twin.quantizer.lookup(codes).contiguous())),
    )


def plain_residual(block: _ResidualBlock, x: Tensor) -> Tensor:
    h = block.conv1(F.silu(block.norm1(x)))
    h = block.conv2(block.dropout(F.silu(block.norm2(h))))
    return h + (block.nin_shortcut(x) if hasattr(block, "nin_shortcut") else x)


def transformers_peer(model: VQModel, folder: Path) -> Peer:
    """`JanusVQVAE` with our weights."""
    VQTokenizer(model).save(folder / "ours")
    theirs = JanusVQVAE.from_pretrained(export(folder / "ours", folder / "janus", "janus")).eval()
    side = model.config.grid_shape
    return Peer(
        "transformers",
        lambda pixels: theirs.encode(pixels).image_tokens.view(len(pixels), *side),
        lambda codes: theirs.decode(codes.flatten(1)),
    )


def pictures() -> Tensor:
    """Noise, a drawing on white, and white alone: flat surfaces are where careless sums show. (3, 3, Y, X) in [-1, 1]."""
    noise = torch.rand(3, SIDE, SIDE, generator=torch_generator(0, "pictures")) * 2 - 1
    white = torch.ones(3, SIDE, SIDE)
    drawing = white.clone()
    drawing[1:, SIDE // 4 : SIDE // 2, SIDE // 3 : SIDE // 2] = -0.5
    return torch.stack([noise, drawing, white])


def gate(ours: Peer, peer: Peer, pixels: Tensor) -> str:
    """Whether both give the same codes, and the same pictures from the same codes."""
    codes = ours.encode(pixels)
    same = float((codes == peer.encode(pixels)).float().mean())
    decibels = float(psnr(ours.decode(codes).clamp(-1, 1), peer.decode(codes).clamp(-1, 1), 2.0).min())
    return "ok" if same >= 0.999 and decibels >= 60 else f"{same:.2%} equal codes, {decibels:.0f} dB"


def seconds_at_limit(action: Callable[[], object]) -> float:
    """How long the multiplications of `action` take at the rate of a product of two matrices of 1024 × 1024."""
    with FlopCounterMode(display=False) as counter:
        action()
    matrix = torch.randn(1024, 1024)
    return counter.get_total_flops() / (2 * 1024**3 / interleaved(lambda: matrix @ matrix, lambda: None, clock=process_time)[0])


@torch.inference_mode()
def rows() -> Iterator[Row]:
    """Encoding and decoding against each peer."""
    model = network(channels=64)
    ours = Peer("ours", model.encode, model.decode)
    shown = pictures()
    pixels = shown[:1]
    codes = ours.encode(pixels)
    limits = {"encode": seconds_at_limit(lambda: ours.encode(pixels)), "decode": seconds_at_limit(lambda: ours.decode(codes))}
    with tempfile.TemporaryDirectory() as folder:
        for peer in (plain(model), transformers_peer(model, Path(folder))):
            verdict = gate(ours, peer, shown)
            actions = {
                "encode": (lambda: ours.encode(pixels), lambda peer=peer: peer.encode(pixels)),
                "decode": (lambda: ours.decode(codes), lambda peer=peer: peer.decode(codes)),
            }
            seconds = {stage: interleaved(*pair, REPEATS, process_time) for stage, pair in actions.items()}
            seconds["encode and decode"] = tuple(map(sum, zip(*seconds.values())))  # type: ignore[assignment]
            for stage, pair in seconds.items():
                limit = sum(limits[part] for part in limits if part in stage)
                yield time_row(f"{stage}, {SIDE}², half width, against {peer.name}", pair, verdict, round(limit / pair[0], 3))
            seconds_of_batch = on_all_cores(ours, peer, pixels)
            yield time_row(f"encode and decode, {BATCH} pictures on all cores, against {peer.name}", seconds_of_batch, verdict)


def on_all_cores(ours: Peer, peer: Peer, pixels: Tensor) -> tuple[float, float]:
    """Seconds for `BATCH` pictures there and back, by the clock."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    batch = pixels.expand(BATCH, -1, -1, -1).contiguous()
    try:
        return interleaved(lambda: ours.decode(ours.encode(batch)), lambda: peer.decode(peer.encode(batch)), REPEATS)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    report(rows, __doc__ or "")
