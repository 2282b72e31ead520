"""Code lookup: our one product and argmax against `vector_quantize_pytorch.VectorQuantize` in evaluation mode.

Gate: at least 99.9 % equal codes, and equal distances (to 1e-4 of the mean) where they differ. The limit is the product of all
vectors with all codes in one piece, without the argmax, timed in the same run; taken in blocks that stay in the cache it can be
beaten. Processor time, one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import process_time

import torch
from torch import Tensor
from torch.nn import functional as F
from vector_quantize_pytorch import VectorQuantize

from benchmarks.measure import Row, interleaved, report, time_row
from cm3.core.seeding import torch_generator
from vqgan.quantizers.nearest import most_similar_codes, nearest_codes

VECTORS = 1024  # one picture of 32 × 32 codes
CODEBOOKS = ((8192, 256, False), (16384, 8, True), (1024, 64, False))  # Make-A-Scene and Chameleon, LlamaGen, ours for drawings


def distances(vectors: Tensor, codebook: Tensor, codes: Tensor) -> Tensor:
    """(N,) distance of each vector to the code it got, in float64."""
    return (vectors.double() - codebook[codes].double()).norm(dim=-1)


@torch.inference_mode()
def row(size: int, width: int, cosine: bool) -> Row:
    """Time and gate for one codebook."""
    generator = torch_generator(0, "lookup", size, width)
    library = VectorQuantize(dim=width, codebook_size=size, use_cosine_sim=cosine).eval()
    codebook = torch.randn(size, width, generator=generator)
    codebook = F.normalize(codebook, dim=-1) if cosine else codebook
    library._codebook.embed.copy_(codebook[None])
    near = torch.randint(size, (VECTORS,), generator=generator)
    vectors = codebook[near] + 0.5 * codebook.std() * torch.randn(VECTORS, width, generator=generator)
    find = most_similar_codes if cosine else nearest_codes
    ours, theirs = find(vectors, codebook), library(vectors[None])[1][0]
    differ = ours != theirs
    compared = F.normalize(vectors, dim=-1) if cosine else vectors
    gaps = (distances(compared, codebook, ours) - distances(compared, codebook, theirs))[differ].abs()
    tolerance = 1e-4 * float(distances(compared, codebook, ours).mean())
    gate = (
        "ok" if float(differ.float().mean()) <= 1e-3 and bool((gaps <= tolerance).all()) else f"{int(differ.sum())} codes differ"
    )
    seconds = interleaved(lambda: find(vectors, codebook), lambda: library(vectors[None]), clock=process_time)
    product = interleaved(lambda: vectors @ codebook.T, lambda: None, clock=process_time)[0]
    kind = "cosine" if cosine else "Euclidean"
    return time_row(f"lookup of {VECTORS} vectors in {size} × {width}, {kind}", seconds, gate, round(product / seconds[0], 3))


def rows() -> Iterator[Row]:
    """One row per codebook."""
    for size, width, cosine in CODEBOOKS:
        yield row(size, width, cosine)


if __name__ == "__main__":
    report(rows, __doc__ or "")
