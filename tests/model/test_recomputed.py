"""What is computed again for the gradient: values and gradients are those of plain autograd, and less is kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from cm3.model.recomputed import rms_norm, swiglu


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def kept(function, *inputs: torch.Tensor) -> int:
    """Numbers saved for the gradient, inputs counted."""
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        function(*inputs)
    return sum(found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_swiglu_has_the_bits_of_plain_autograd(dtype):
    gate, up, upstream = draw(0, 5, 7, 12, dtype=dtype), draw(1, 5, 7, 12, dtype=dtype), draw(2, 5, 7, 12, dtype=dtype)
    ours, plain = swiglu(gate, up), F.silu(gate) * up
    assert torch.equal(ours, plain)
    with torch.no_grad():
        assert torch.equal(swiglu(gate, up), plain)
    for mine, theirs in zip(torch.autograd.grad(ours, (gate, up), upstream), torch.autograd.grad(plain, (gate, up), upstream)):
        assert torch.equal(mine, theirs)
    assert kept(swiglu, gate, up) == 2 * gate.numel() < kept(lambda g, u: F.silu(g) * u, gate, up)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float64, 1e-12)])
def test_rms_norm_is_that_of_torch(dtype, tolerance):
    x, weight, upstream = draw(0, 5, 7, 12, dtype=dtype), draw(1, 12, dtype=dtype), draw(2, 5, 7, 12, dtype=dtype)
    ours, plain = rms_norm(x, weight, 1e-6), F.rms_norm(x, (12,), weight, 1e-6)
    torch.testing.assert_close(ours, plain, atol=tolerance, rtol=tolerance)
    with torch.no_grad():
        assert torch.equal(rms_norm(x, weight, 1e-6), plain)
    for mine, theirs in zip(torch.autograd.grad(ours, (x, weight), upstream), torch.autograd.grad(plain, (x, weight), upstream)):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, theirs, atol=10 * tolerance, rtol=10 * tolerance)
    assert kept(lambda a, w: rms_norm(a, w, 1e-6), x, weight) == x.numel() + 12 + 35


def test_gradients_by_finite_differences():
    x, weight = draw(0, 3, 4, dtype=torch.float64), draw(1, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, w: rms_norm(a, w, 1e-6), (x, weight))
    assert torch.autograd.gradcheck(swiglu, (draw(2, 3, 4, dtype=torch.float64), draw(3, 3, 4, dtype=torch.float64)))
