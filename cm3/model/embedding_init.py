"""Starting the image token embeddings from the codebook: neighbors among codes begin as neighbors among tokens.

A codebook vector already says what its code looks like; projecting it into the width of the transformer gives the model
that geometry before the first step instead of making it learn every code from scratch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cm3.core.errors import ArtefactError
from cm3.model.modeling import CM3ForCausalLM


def project_codebook(codebook: Tensor, width: int, std: float, generator: torch.Generator) -> Tensor:
    """Code vectors (N, E) → embeddings (N, D=width), float32, with mean 0 and standard deviation `std`.

    Centered, mapped by a random matrix with orthonormal rows (E ≤ D, all distances keep their ratios) or columns (E > D,
    a random subspace), and scaled as a whole.
    """
    centered = codebook.float() - codebook.float().mean(dim=0, keepdim=True)
    square = torch.randn(max(codebook.shape[1], width), min(codebook.shape[1], width), generator=generator)
    basis = torch.linalg.qr(square).Q  # (max, min), orthonormal columns
    basis = basis.T if codebook.shape[1] <= width else basis  # (E, D)
    projected = centered @ basis
    return projected * (std / projected.std().clamp_min(1e-12))


@torch.no_grad()
def set_image_embeddings(model: CM3ForCausalLM, embeddings: Tensor, image_start: int) -> None:
    """Write embeddings (N, D) into the token ids [image_start, image_start + N), input and (when tied) output alike."""
    weight = model.get_input_embeddings().weight
    stop = image_start + embeddings.shape[0]
    if image_start < 0 or stop > weight.shape[0] or embeddings.shape[1] != weight.shape[1]:
        raise ArtefactError(
            f"image embeddings {tuple(embeddings.shape)} at id {image_start} do not fit the token embeddings "
            f"{tuple(weight.shape)}; use the codebook this vocabulary was made for"
        )
    weight[image_start:stop] = embeddings.to(weight)
