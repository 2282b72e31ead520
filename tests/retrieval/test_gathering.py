"""Two processes contrast with each other's pairs: loss and gradients are those of one process with all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import Tensor
from torch.nn.functional import normalize

from retrieval.contrastive import alike_pairs, contrastive_loss
from retrieval.gathering import gather_candidates

COUNT, WIDTH = 6, 5


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of pictures, of texts and of hard texts (6, 5), and keys of which two are equal."""
    features = torch.randn(3, COUNT, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keys = torch.arange(2 * COUNT).reshape(COUNT, 2)
    keys[4, 0] = keys[1, 0]
    return features[0], features[1], features[2], keys


def loss_and_gradients(rows: slice) -> list[Tensor]:
    """The loss of the pairs in `rows` under a linear tower of ones, and the gradients of the tower and of the scale."""
    tower = torch.eye(WIDTH, dtype=torch.float64).add(0.1).requires_grad_()
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    images, texts, hard = (normalize(part[rows] @ tower, dim=-1) for part in inputs()[:3])
    keys = inputs()[3][rows]
    candidates, all_keys = gather_candidates(images, texts, keys)
    loss = contrastive_loss(images, texts, scale, alike_pairs(keys, all_keys), hard, candidates)
    loss.backward()
    assert tower.grad is not None
    assert scale.grad is not None
    return [loss.detach(), tower.grad, scale.grad]


def one_process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        torch.save(loss_and_gradients(slice(3 * rank, 3 * rank + 3)), f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # of starting processes
def test_two_processes_equal_one(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=one_process, args=(rank, str(tmp_path))) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for first, second, whole in zip(*parts, loss_and_gradients(slice(0, COUNT)), strict=True):
        torch.testing.assert_close((first + second) / 2, whole, atol=1e-12, rtol=1e-10)
    assert float((parts[0][1] - parts[1][1]).abs().max()) > 1e-6  # each process has its own share
