"""What `cm3.train` trains when it trains a tokenizer: networks, batches, losses, held-out figures and pictures."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cm3.core.artefact import hash_file
from cm3.core.errors import UsageError
from cm3.core.seeding import derive_seed, numpy_generator
from cm3.train.optimizers import split_decay
from cm3.train.processes import is_main_process
from cm3.train.task import Metrics, Shard
from vqgan.codebook_monitor import HORIZON, CodebookMonitor, collapse_warning, has_collapsed
from vqgan.config import VQTrainConfig
from vqgan.evaluation import codebook_metrics, reconstruction_metrics
from vqgan.losses.adversarial import LeCAM, PatchDiscriminator
from vqgan.losses.lpips import load_lpips
from vqgan.losses.objective import discriminator_loss, reconstruction_loss, tokenizer_loss
from vqgan.model import VQModel
from vqgan.pictures import BatchOrder, Pictures, split_validation
from vqgan.preprocessing import to_pixels
from vqgan.quantizers.quantizer import Annealed
from vqgan.regions import pixel_weights
from vqgan.sheets import comparison_picture

_SHOWN = 16
_DECIDING = {"validation_fraction", "validation_images", "batch_size", "flip", "initialize_from_data", "freeze_encoder"}
_logger = logging.getLogger(__name__)


@dataclass
class VQBatch:
    """arrays: (B, 3, Y, X) uint8; regions: (B, Y, X) uint8 strengths or None; reconstruction: (B, 3, Y, X), left there by the
    tokenizer's loss for the discriminator's."""

    arrays: Tensor
    regions: Tensor | None = None
    reconstruction: Tensor | None = None


class VQTask:
    """The `TrainingTask` of a tokenizer: one optimizer "model", and "discriminator" when the loss is adversarial."""

    def __init__(self, model: VQModel, config: VQTrainConfig, pictures: Pictures) -> None:
        self.config, self.pictures_store = config, pictures
        self.training_indices, self.validation_indices = split_validation(
            pictures, config.validation_fraction, config.validation_images
        )
        self.order = BatchOrder(self.training_indices, config.batch_size, config.train.seed)
        self.modules: dict[str, nn.Module] = {"model": model, "codebook": CodebookMonitor(model.config.codebook_size)}
        self._last_weight: Tensor = model.decoder.last_weight  # type: ignore[assignment]
        self._config, self._quantizer = model.config, model.quantizer
        self._collapsed = False
        self._lpips = load_lpips(config.loss.lpips_weights) if config.loss.lpips_weights else None
        if config.loss.adversarial:
            torch.manual_seed(derive_seed(config.train.seed, "discriminator"))
            loss = config.loss
            self.modules["discriminator"] = PatchDiscriminator(loss.discriminator_channels, loss.discriminator_layers)
            self.modules["lecam"] = LeCAM()
        if config.freeze_encoder:
            for part in (model.encoder, model.quant_conv, model.quantizer):
                part.requires_grad_(False)

    def parameter_groups(self) -> dict[str, list[dict[str, Any]]]:
        trained = ("model", "discriminator")
        return {name: split_decay(module.named_parameters()) for name, module in self.modules.items() if name in trained}

    def settings(self) -> dict[str, Any]:
        """The settings that decide the result: what a run that goes on must have had from its start."""
        loss = self.config.loss.model_dump(mode="json")
        if self.config.loss.lpips_weights:
            loss["lpips_weights"] = {"fingerprint": hash_file(Path(self.config.loss.lpips_weights))}
        return {
            "data": {"fingerprint": self.pictures_store.fingerprint()},
            "tokenizer": self._config.model_dump(mode="json"),
            "loss": loss,
            **self.config.model_dump(mode="json", include=_DECIDING),
        }

    def batch(self, step: int, shard: Shard) -> VQBatch:
        if self.config.batch_size % shard.count:
            raise UsageError(
                f"batch_size {self.config.batch_size} can't be cut into {shard.count} equal parts, "
                "one for each process and accumulation step"
            )
        chosen = self.order.step(step)[shard.index :: shard.count]
        arrays, regions = self.pictures_store.take(chosen), self.pictures_store.take_regions(chosen)
        if self.config.flip:
            mirrored = numpy_generator(self.config.train.seed, "flip", step, shard.index).random(len(arrays)) < 0.5
            arrays[mirrored] = arrays[mirrored].flip(-1)
            if regions is not None:
                regions[mirrored] = regions[mirrored].flip(-1)
        return VQBatch(arrays, regions)

    def loss(self, name: str, batch: VQBatch, step: int) -> tuple[Tensor | None, Metrics]:
        if name == "discriminator":
            return self._discriminator_loss(batch, step)
        return self._model_loss(batch, step)

    def _model_loss(self, batch: VQBatch, step: int) -> tuple[Tensor, Metrics]:
        weights, pixels = self.config.loss, to_pixels(batch.arrays)
        regions = None if batch.regions is None else pixel_weights(batch.regions, weights.region_emphasis)
        if isinstance(self._quantizer, Annealed):
            self._quantizer.at_step(step)
        if self.config.freeze_encoder:
            self._quantizer.eval()  # moving averages and restarts ask for the mode, not for gradients
        output = self.modules["model"](pixels)
        batch.reconstruction = output.reconstruction.detach()
        lpips = None if self._lpips is None else self._lpips.to(pixels.device)
        main = reconstruction_loss(output, pixels, weights, regions, lpips)
        discriminator = self.modules["discriminator"] if self._adversarial(step) else None
        total, metrics = tokenizer_loss(output, main, weights, discriminator, self._last_weight)
        recent = self.modules["codebook"](output.codes)
        if step % HORIZON == HORIZON - 1:
            self._warn_of_collapse(recent, self.modules["codebook"].vectors())  # type: ignore[operator]
        return total, metrics | recent

    def _discriminator_loss(self, batch: VQBatch, step: int) -> tuple[Tensor | None, Metrics]:
        if not self._adversarial(step):
            return None, {}
        if batch.reconstruction is None:
            raise UsageError("the discriminator's loss follows the tokenizer's on the same batch")
        lecam = self.modules["lecam"]
        return discriminator_loss(
            self.modules["discriminator"], to_pixels(batch.arrays), batch.reconstruction, lecam, self.config.loss.lecam
        )

    def _adversarial(self, step: int) -> bool:
        weights = self.config.loss
        return bool(weights.adversarial) and step >= weights.adversarial_start

    def evaluate(self) -> dict[str, float]:
        """Figures on the held-out pictures, none without such pictures; a collapsed codebook is also said in words."""
        if not len(self.validation_indices):
            return {}
        figures = self._tokenize(self.validation_indices)[0]
        height, width = self._config.grid_shape
        self._warn_of_collapse(figures, len(self.validation_indices) * height * width)
        return figures

    def pictures(self) -> dict[str, Image.Image]:
        """Held-out pictures above their reconstructions; without any, pictures that it learns from, and named so."""
        held_out = len(self.validation_indices) > 0
        shown = self.validation_indices if held_out else self.training_indices
        originals, reconstructions = self._tokenize(shown[:_SHOWN])[1:]
        name = "reconstructions" if held_out else "reconstructions_of_training_pictures"
        return {name: comparison_picture(originals, reconstructions)}

    def _warn_of_collapse(self, figures: Any, vectors: float) -> None:
        usage, perplexity = float(figures["usage"]), float(figures["perplexity"])
        before, self._collapsed = self._collapsed, has_collapsed(usage, perplexity, vectors, self._config.codebook_size)
        if self._collapsed and not before and is_main_process():  # said once, and again after it had recovered
            _logger.warning(collapse_warning(usage, perplexity, self._config, self.config.initialize_from_data))

    def _tokenize(self, indices: np.ndarray) -> tuple[dict[str, float], Tensor, Tensor]:
        model = self.modules["model"]
        device = next(model.parameters()).device
        parts = []
        at_once = self.pictures_store.at_once
        for start in range(0, len(indices), at_once):
            pixels = to_pixels(self.pictures_store.take(indices[start : start + at_once])).to(device)
            output = model(pixels)
            parts.append((pixels, output.reconstruction.float().clamp(-1, 1), output.codes))
        originals, reconstructions, codes = (torch.cat(column) for column in zip(*parts))
        figures = reconstruction_metrics(originals, reconstructions) | codebook_metrics(codes, self._config.codebook_size)
        return figures, originals, reconstructions
