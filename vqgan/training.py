"""Training a tokenizer: the task that `cm3.train` runs, and `train`, which goes from pictures to a finished folder.

pictures → start from data → loop (reconstruction [+ perceptual + adversarial] + quantizer loss) → folder
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cm3.core.artefact import require_replaceable, write_json
from cm3.core.errors import UsageError
from cm3.core.runfile import write_resolved
from cm3.core.seeding import derive_seed, numpy_generator
from cm3.core.storage import sibling, storage_errors
from cm3.documents.report import ReadReport
from cm3.train.loop import TrainResult
from cm3.train.loop import train as run_loop
from cm3.train.optimizers import split_decay
from cm3.train.task import Metrics, Shard
from vqgan.config import LossConfig, VQTrainConfig
from vqgan.evaluation import codebook_metrics, comparison_picture, reconstruction_metrics
from vqgan.initialization import initialize_from_data
from vqgan.losses.adversarial import (
    LeCAM,
    PatchDiscriminator,
    adaptive_weight,
    generator_loss,
    hinge_discriminator_loss,
)
from vqgan.losses.logit_laplace import logit_laplace_loss
from vqgan.losses.lpips import load_lpips
from vqgan.losses.reconstruction import edge_loss, l1_loss, l2_loss
from vqgan.model import VQModel, VQOutput
from vqgan.pictures import BatchOrder, Pictures, read_pictures, split_validation
from vqgan.preprocessing import to_pixels
from vqgan.quantizers.quantizer import Annealed
from vqgan.tokenizer import KIND, VQTokenizer

_COLLAPSED = 4.0  # perplexity on held-out pictures below which nothing but background is told apart
_EVALUATION_BATCH = 64
_logger = logging.getLogger(__name__)
_SHOWN = 16


@dataclass
class VQBatch:
    """arrays: (B, 3, Y, X) uint8; reconstruction: (B, 3, Y, X), left there by the tokenizer's loss for the discriminator's."""

    arrays: Tensor
    reconstruction: Tensor | None = None


class VQTask:
    """The `TrainingTask` of a tokenizer: one optimizer "model", and "discriminator" when the loss is adversarial."""

    def __init__(self, model: VQModel, config: VQTrainConfig, pictures: Pictures) -> None:
        self.config, self.pictures_store = config, pictures
        self.training_indices, held_out = split_validation(pictures, config.validation_fraction, config.validation_images)
        self.validation_indices = held_out if len(held_out) else self.training_indices[:1]
        self.order = BatchOrder(self.training_indices, config.batch_size, config.train.seed)
        self.modules: dict[str, nn.Module] = {"model": model}
        self._last_weight = model.decoder.last_weight
        self._config, self._quantizer = model.config, model.quantizer
        self._lpips = load_lpips(config.loss.lpips_weights) if config.loss.lpips_weights else None
        if config.loss.adversarial:
            torch.manual_seed(derive_seed(config.train.seed, "discriminator"))
            loss = config.loss
            self.modules["discriminator"] = PatchDiscriminator(loss.discriminator_channels, loss.discriminator_layers)
            self._lecam = LeCAM()
            self.modules["lecam"] = self._lecam
        if config.freeze_encoder:
            for part in (model.encoder, model.quant_conv, model.quantizer):
                part.requires_grad_(False)

    def parameter_groups(self) -> dict[str, list[dict[str, Any]]]:
        trained = ("model", "discriminator")
        return {name: split_decay(module.named_parameters()) for name, module in self.modules.items() if name in trained}

    def batch(self, step: int, shard: Shard) -> VQBatch:
        if self.config.batch_size % shard.count:
            raise UsageError(
                f"batch_size {self.config.batch_size} can't be cut into {shard.count} equal parts, "
                "one for each process and accumulation step"
            )
        arrays = self.pictures_store.take(self.order.step(step)[shard.index :: shard.count])
        if self.config.flip:
            mirrored = numpy_generator(self.config.train.seed, "flip", step, shard.index).random(len(arrays)) < 0.5
            arrays[mirrored] = arrays[mirrored].flip(-1)
        return VQBatch(arrays)

    def loss(self, name: str, batch: VQBatch, step: int) -> tuple[Tensor | None, Metrics]:
        if name == "discriminator":
            return self._discriminator_loss(batch, step)
        return self._model_loss(batch, step)

    def _model_loss(self, batch: VQBatch, step: int) -> tuple[Tensor, Metrics]:
        weights = self.config.loss
        pixels = to_pixels(batch.arrays)
        if isinstance(self._quantizer, Annealed):
            self._quantizer.at_step(step)
        output = self.modules["model"](pixels)
        batch.reconstruction = output.reconstruction.detach()
        main = reconstruction_loss(output, pixels, weights)
        if self._lpips is not None and weights.perceptual == "lpips":
            main = main + weights.perceptual_weight * self._lpips.to(pixels.device)(output.reconstruction, pixels).mean()
        total = main + weights.quantizer * output.quantizer_loss
        metrics: Metrics = {"reconstruction": main.detach(), "quantizer": output.quantizer_loss.detach(), **output.metrics}
        metrics |= codebook_metrics(output.codes, self._config.codebook_size)
        if weights.adversarial and step >= weights.adversarial_start:
            fooling = generator_loss(self.modules["discriminator"](output.reconstruction))
            factor = adaptive_weight(main, fooling, self._last_weight) if weights.adaptive_weight else torch.ones(())
            total = total + weights.adversarial * factor * fooling
            metrics |= {"adversarial": fooling.detach(), "adaptive_weight": factor}
        return total, metrics

    def _discriminator_loss(self, batch: VQBatch, step: int) -> tuple[Tensor | None, Metrics]:
        weights, discriminator = self.config.loss, self.modules["discriminator"]
        if step < weights.adversarial_start:
            return None, {}
        if batch.reconstruction is None:
            raise UsageError("the discriminator's loss follows the tokenizer's on the same batch")
        real = discriminator(to_pixels(batch.arrays))
        fake = discriminator(batch.reconstruction)
        loss = hinge_discriminator_loss(real, fake)
        if weights.lecam:
            loss = loss + weights.lecam * self._lecam(real, fake)
        return loss, {"real": real.detach().mean(), "fake": fake.detach().mean()}

    def evaluate(self) -> dict[str, float]:
        """Figures on the held-out pictures; a collapsed codebook is also said in words."""
        figures = self._tokenize(self.validation_indices)[0]
        if figures["perplexity"] < _COLLAPSED and self._config.codebook_size > 2 * _COLLAPSED:
            _logger.warning(
                "the codebook has collapsed: %d of %d codes in use, perplexity %.1f; restart unused codes (quantizer_options "
                "restart_below = 0.5), or take quantizer 'cosine' with codebook_dim 8",
                figures["codes_used"],
                self._config.codebook_size,
                figures["perplexity"],
            )
        return figures

    def pictures(self) -> dict[str, Image.Image]:
        """Held-out pictures above their reconstructions."""
        originals, reconstructions = self._tokenize(self.validation_indices[:_SHOWN])[1:]
        return {"reconstructions": comparison_picture(originals, reconstructions)}

    def _tokenize(self, indices: np.ndarray) -> tuple[dict[str, float], Tensor, Tensor]:
        model = self.modules["model"]
        device = next(model.parameters()).device
        parts = []
        for start in range(0, len(indices), _EVALUATION_BATCH):
            pixels = to_pixels(self.pictures_store.take(indices[start : start + _EVALUATION_BATCH])).to(device)
            output = model(pixels)
            parts.append((pixels, output.reconstruction.float().clamp(-1, 1), output.codes))
        originals, reconstructions, codes = (torch.cat(column) for column in zip(*parts))
        figures = reconstruction_metrics(originals, reconstructions) | codebook_metrics(codes, self._config.codebook_size)
        return figures, originals, reconstructions


def reconstruction_loss(output: VQOutput, pixels: Tensor, weights: LossConfig) -> Tensor:
    """The weighted sum of the terms that need no weights of their own, 0-d; pixels (B, 3, Y, X)."""
    reconstruction = output.reconstruction
    total = reconstruction.new_zeros(())
    if weights.logit_laplace:
        total = total + weights.logit_laplace * logit_laplace_loss(output.decoded, pixels)
    if weights.l1:
        total = total + weights.l1 * l1_loss(reconstruction, pixels)
    if weights.l2:
        total = total + weights.l2 * l2_loss(reconstruction, pixels)
    if weights.perceptual == "edges":
        total = total + weights.perceptual_weight * edge_loss(reconstruction, pixels)
    return total


def train(config: VQTrainConfig, out: Path | str | None = None, provenance: Mapping[str, Any] | None = None) -> VQTokenizer:
    """Train the tokenizer that `config` describes on `config.data` and write its folder to `out` (default: `config.out`).

    The run itself (checkpoints, metrics, pictures, the resolved configuration, the report of the reading) lies in the
    sibling folder `OUT-run`; calling again after an interruption goes on there. Returns the tokenizer.
    """
    target = out or config.out
    if target is None:
        raise UsageError("no place for the tokenizer; set `out`")
    target = Path(target)
    require_replaceable(target, KIND)
    run_dir = sibling(target, suffix="-run")
    tokenizer_config = config.resolve()
    report = ReadReport()
    pictures = read_pictures(config, tokenizer_config, run_dir, report)
    torch.manual_seed(derive_seed(config.train.seed, "weights"))
    model = VQModel(tokenizer_config)
    task = VQTask(model, config, pictures)
    if config.initialize_from_data:
        initialize_from_data(model, pictures, task.training_indices, config.train.seed)
    with storage_errors(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    write_resolved(config, run_dir)
    write_json(run_dir / "reading.json", report.to_json())
    result = run_loop(task, config.train, run_dir, label="image tokenizer")
    model.cpu()
    if result.ema:
        model.load_state_dict(result.ema["model"], strict=False)
    tokenizer = VQTokenizer(model)
    figures = _last_evaluation(result)
    tokenizer.save(target, provenance={"run": config.model_dump(mode="json"), "figures": figures, **(provenance or {})})
    return tokenizer


def _last_evaluation(result: TrainResult) -> dict[str, Any]:
    records = [record for record in result.history if record["kind"] == "eval"]
    return dict(records[-1]) if records else {}
