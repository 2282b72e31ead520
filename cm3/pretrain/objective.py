"""`TokenObjective`: the transformer together with its token loss, as one module that a batch goes through.

Having the loss inside the module lets data-parallel and sharded wrappers see one forward call, and the logits never leave
it: only rows with a weight are projected, and those in chunks (`cm3.pretrain.losses`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from cm3.core.runfile import RunConfig
from cm3.model import CM3ForCausalLM
from cm3.model.document_attention import BY_DOCUMENT
from cm3.pretrain.losses import ROW_STEP, balanced_weights, linear_cross_entropy
from cm3.sequences.batch import Batch
from cm3.tokens.vocab import Vocab
from cm3.train.task import Ratio


class LossConfig(RunConfig):
    """z_weight: Chameleon's z-loss factor (0: off; the paper uses 1e-5); image_weight: factor on the weights of image
    targets, the text/image loss ratio (1: every token counts the same)."""

    z_weight: float = Field(0.0, ge=0, allow_inf_nan=False)
    image_weight: float = Field(1.0, ge=0, allow_inf_nan=False)


@dataclass(frozen=True)
class TokenLoss:
    """loss: 0-d weighted mean; weight: Σ of the token weights; token_losses: (N,) nats of the weighted tokens, detached;
    is_image: (N,) bool, which of them are image codes."""

    loss: Tensor
    weight: Tensor
    token_losses: Tensor
    is_image: Tensor


class TokenObjective(nn.Module):
    """Batch → `TokenLoss`."""

    def __init__(self, model: CM3ForCausalLM, vocab: Vocab, config: LossConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.image_range = (vocab.image_start, vocab.image_stop)

    def forward(self, batch: Batch) -> TokenLoss:
        """Run the rows of `batch` (B, T) and compare what they predict with its targets where a weight stands."""
        if self.model.config._attn_implementation == BY_DOCUMENT:
            batch = batch.without_padding(ROW_STEP)  # which nothing looks at
        hidden = self.model.model(
            input_ids=batch.tokens,
            position_ids=batch.positions,
            grid_positions=batch.grid_positions,
            document_ids=batch.document_ids,
        ).last_hidden_state  # (B, T, D)
        counted = batch.loss_weights > 0  # (B, T)
        targets = batch.targets[counted]  # (N,)
        is_image = (targets >= self.image_range[0]) & (targets < self.image_range[1])
        weights = balanced_weights(is_image, batch.loss_weights[counted], self.config.image_weight)
        loss, token_losses = linear_cross_entropy(
            hidden[counted], self.model.lm_head.weight, targets, weights, self.config.z_weight
        )
        return TokenLoss(loss, weights.sum(), token_losses, is_image)


def bits_ratios(result: TokenLoss) -> dict[str, Ratio]:
    """The figures of `bits_by_modality` for one batch as sums and counts that stay on the device (0 / 0 for what is missing)."""
    bits = result.token_losses / math.log(2.0)
    count, images = bits.numel(), result.is_image.sum()
    in_images = (bits * result.is_image).sum()
    return {
        "bits_per_text_token": Ratio(bits.sum() - in_images, count - images),
        "bits_per_image_token": Ratio(in_images, images),
        "bits_per_token": Ratio(bits.sum(), float(count)),
    }


def bits_by_modality(losses: list[TokenLoss]) -> dict[str, float]:
    """Mean bits per token of text and of image targets over several batches, and over all of them ("bits_per_token").

    A modality that does not occur is left out.
    """
    token_losses = torch.cat([item.token_losses for item in losses]) / torch.log(torch.tensor(2.0))
    is_image = torch.cat([item.is_image for item in losses])
    groups = {"bits_per_text_token": ~is_image, "bits_per_image_token": is_image, "bits_per_token": is_image | ~is_image}
    return {name: float(token_losses[group].mean()) for name, group in groups.items() if bool(group.any())}
