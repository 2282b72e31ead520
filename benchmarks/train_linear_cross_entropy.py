"""Token loss: chunked cross-entropy against projecting all logits and `torch.nn.functional.cross_entropy`, forward and backward.

Time, and the peak of memory that the loss itself adds, at several vocabulary sizes. Gate: equal loss to 1e-5 and equal
gradients to 1e-4.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Row, interleaved, peak_mib, report, time_row
from cm3.core.seeding import torch_generator
from cm3.pretrain.losses import linear_cross_entropy

TOKENS, WIDTH = 2048, 256
VOCABULARIES = (1_388, 16_384, 65_536)


class Problem:
    """Hidden states of TOKENS tokens, an output embedding, targets; `ours` and `peer` leave gradients behind."""

    def __init__(self, vocab_size: int) -> None:
        generator = torch_generator(0, "benchmark")
        self.hidden = torch.randn(TOKENS, WIDTH, generator=generator, requires_grad=True)
        self.weight = (torch.randn(vocab_size, WIDTH, generator=generator) * 0.02).requires_grad_()
        self.targets = torch.randint(vocab_size, (TOKENS,), generator=generator)
        self.weights = torch.ones(TOKENS)

    def ours(self) -> Tensor:
        return self._gradients(linear_cross_entropy(self.hidden, self.weight, self.targets, self.weights)[0])

    def peer(self) -> Tensor:
        return self._gradients(F.cross_entropy(self.hidden @ self.weight.T, self.targets))

    def _gradients(self, loss: Tensor) -> Tensor:
        self.hidden.grad = self.weight.grad = None
        loss.backward()
        return loss.detach()

    def gate(self) -> str:
        ours, grads = self.ours(), [self.hidden.grad, self.weight.grad]
        peer, others = self.peer(), [self.hidden.grad, self.weight.grad]
        if abs(float(ours - peer)) > 1e-5:
            return f"losses differ by {abs(float(ours - peer)):.1e}"
        worst = max(float((a - b).abs().max()) for a, b in zip(grads, others) if a is not None and b is not None)
        return "ok" if worst <= 1e-4 else f"gradients differ by {worst:.1e}"


def rows() -> Iterator[Row]:
    """Time and memory for every vocabulary size."""
    for vocab_size in VOCABULARIES:
        problem = Problem(vocab_size)
        gate = problem.gate()
        yield time_row(f"loss and gradients, vocabulary {vocab_size}", interleaved(problem.ours, problem.peer, 5), gate)
        ours, peer = peak_mib(problem.ours), peak_mib(problem.peer)
        name = f"peak memory of it, vocabulary {vocab_size}"
        yield Row(row=name, ours=ours, peer=peer, ratio=peer / ours, unit="MiB", limit_fraction=None, gate=gate)


if __name__ == "__main__":
    report(rows, __doc__ or "")
