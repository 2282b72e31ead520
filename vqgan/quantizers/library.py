"""`vector_quantize_pytorch.VectorQuantize` behind our protocol: its training, our lookup.

The library keeps the codebook: moving averages, dead-code restart, rotation of gradients, synchronization over processes. The
codes come from `nearest`, one product and an argmax, which are the library's codes several times faster.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from vector_quantize_pytorch import VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from cm3.core.runfile import RunConfig
from cm3.core.seeding import torch_generator
from cm3.train.processes import process_count
from vqgan.config import VQConfig
from vqgan.quantizers.kmeans import kmeans
from vqgan.quantizers.nearest import most_similar_codes, nearest_codes
from vqgan.quantizers.quantizer import Quantized, codes_to_grid, embed_codes, to_grid, to_rows


class LibraryOptions(RunConfig):
    """`decay` of the moving averages; `commitment` weight; codes whose average use falls below `restart_below` vectors per
    step are replaced by latents of the batch (0: never); `kmeans_iterations` at the start."""

    decay: float = Field(0.99, gt=0, lt=1)
    commitment: float = Field(0.25, ge=0)
    restart_below: float = Field(0.0, ge=0)
    kmeans_iterations: int = Field(10, ge=1)


class LibraryQuantizer(nn.Module):
    """A single-head `VectorQuantize` on image grids: Euclidean or cosine, straight-through or rotated gradient."""

    def __init__(self, config: VQConfig, options: LibraryOptions, cosine: bool = False, rotation_trick: bool = False) -> None:
        super().__init__()
        self.codebook_size = config.codebook_size
        self.options = options
        self.cosine, self.rotation_trick = cosine, rotation_trick
        self.library = VectorQuantize(
            dim=config.codebook_dim,
            codebook_size=config.codebook_size,
            decay=options.decay,
            commitment_weight=options.commitment,
            threshold_ema_dead_code=options.restart_below,
            use_cosine_sim=cosine,
            rotation_trick=rotation_trick,
            sync_codebook=process_count() > 1,  # the library's own question remembers its first answer
        )

    def forward(self, latents: Tensor) -> Quantized:
        rows = to_rows(latents)
        if self.cosine:
            rows = F.normalize(rows, dim=-1)
        codes = self._find(rows)
        vectors = F.embedding(codes, self.codebook())  # a copy: the averages move next
        if self.training:
            self.library.update_indices(rows.detach()[None], codes[None])
        commitment = F.mse_loss(rows, vectors)
        quantized = rotate_to(rows, vectors) if self.rotation_trick else rows + (vectors - rows).detach()
        loss = self.options.commitment * commitment
        grid = codes_to_grid(codes, latents)
        return Quantized(to_grid(quantized, latents), grid, loss, {"commitment": commitment.detach()})

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        return codes_to_grid(self._find(to_rows(latents)), latents)

    def lookup(self, codes: Tensor) -> Tensor:
        return embed_codes(codes, self.codebook())

    def codebook(self) -> Tensor:
        return self.library.codebook

    @torch.no_grad()
    def initialize(self, latents: Tensor, weights: Tensor, seed: int) -> None:
        rows = F.normalize(latents, dim=-1) if self.cosine else latents
        generator = torch_generator(seed, "codebook")
        centers = kmeans(rows, self.codebook_size, weights, generator, self.options.kmeans_iterations)
        if self.cosine:
            centers = F.normalize(centers, dim=-1)
        state = self.library._codebook
        state.embed.copy_(centers[None])
        state.embed_avg.copy_(centers[None])  # one vector of weight each, so that the averages move at once
        state.cluster_size.fill_(1.0)

    def _find(self, rows: Tensor) -> Tensor:
        return (most_similar_codes if self.cosine else nearest_codes)(rows, self.codebook())
