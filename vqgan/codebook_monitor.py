"""How much of the codebook is in use while training, and what to do when it collapses.

One batch touches few codes of a large codebook, so use is counted over the recent past: every step the counts fade by
`_DECAY` and the batch's, of all processes, are added. The counts are saved with the run, so that a resumed run measures the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cm3.train.processes import added_up
from vqgan.config import VQConfig

HORIZON = 100  # steps after which a code that was chosen once no longer counts as in use
_DECAY = 0.99
_LEAST_USAGE, _LEAST_PERPLEXITY = 0.05, 4.0  # below either, a codebook has collapsed

_RESTART = "restart unused codes with quantizer_options.restart_below = 0.5"
_COSINE = "take quantizer 'cosine' with codebook_dim 8"
_REMEDIES = {
    "vq": f"take quantizer 'ema' and {_RESTART}, or {_COSINE}",
    "ema": f"{_RESTART}, or {_COSINE}",
    "rotation": f"{_RESTART}, or {_COSINE}",
    "cosine": f"{_RESTART}, or lower codebook_dim to 8",
    "fsq": "take fewer codes: codebook_size 240 or 512, since every level is there to be used",
    "lfq": "raise quantizer_options.entropy, or take fewer codes",
    "ibq": "raise quantizer_options.entropy, or lower train.learning_rate",
    "gumbel": "raise quantizer_options.kl_weight, or anneal over more quantizer_options.temperature_steps",
}
_STARTED = {"vq", "ema", "rotation", "cosine", "ibq"}  # the others have no vectors that could be placed among latents
_RESTARTED = "lower train.learning_rate and codebook_dim, or take quantizer 'fsq', which has no codebook to lose"


class CodebookMonitor(nn.Module):
    """Fading counts (K,) of the codes of recent steps."""

    counts: Tensor

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(codebook_size))

    @torch.no_grad()
    def forward(self, codes: Tensor) -> dict[str, Tensor]:
        """Add the codes (any shape, int64) of one step. → "usage" (a share) and "perplexity" of the recent past, 0-d each."""
        self.counts.mul_(_DECAY).add_(added_up(torch.bincount(codes.flatten(), minlength=self.counts.shape[0])))
        rates = self.counts / self.counts.sum()
        entropy = -(rates * rates.clamp(min=torch.finfo(rates.dtype).tiny).log()).sum()
        return {"usage": (self.counts >= _DECAY**HORIZON).float().mean(), "perplexity": entropy.exp()}

    def vectors(self) -> float:
        """How many vectors the counts stand for. Waits for the device."""
        return float(self.counts.sum())


def has_collapsed(usage: float, perplexity: float, vectors: float, codebook_size: int) -> bool:
    """Whether `vectors` that use so much of the codebook tell of a collapse; fewer of them than codes tell nothing."""
    few = usage < _LEAST_USAGE and vectors >= codebook_size
    return few or (perplexity < _LEAST_PERPLEXITY and codebook_size > 2 * _LEAST_PERPLEXITY)


def collapse_warning(usage: float, perplexity: float, config: VQConfig, initialized: bool) -> str:
    """The sentence for people: what happened, and which settings of this tokenizer help."""
    remedy = _REMEDIES.get(config.quantizer, "take another quantizer")
    if config.quantizer_options.get("restart_below"):
        remedy = _RESTARTED
    if not initialized and config.quantizer in _STARTED:
        remedy = f"set initialize_from_data = true, or {remedy}"
    return (
        f"the codebook has collapsed: {usage:.1%} of {config.codebook_size} codes in use, perplexity {perplexity:.1f}; {remedy}"
    )
