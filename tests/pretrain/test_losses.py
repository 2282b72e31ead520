"""The chunked loss equals the obvious one, in value and in gradients, and stays finite on image labels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cm3.core.seeding import torch_generator
from cm3.pretrain import losses
from cm3.pretrain.losses import balanced_weights, linear_cross_entropy


def example(count: int = 37, width: int = 8, vocab_size: int = 23) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch_generator(0, "losses")
    hidden = torch.randn(count, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocab_size, width, generator=generator, requires_grad=True)
    targets = torch.randint(vocab_size, (count,), generator=generator)
    return hidden, weight, targets, torch.rand(count, generator=generator)


def obvious(hidden: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor, z_weight: float) -> Tensor:
    logits = hidden @ weight.T
    token_losses = F.cross_entropy(logits, targets, reduction="none") + z_weight * logits.logsumexp(-1).square()
    return (token_weights * token_losses).sum() / token_weights.sum()


@pytest.mark.parametrize("z_weight", [0.0, 1e-2])
@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_equals_the_obvious_loss(monkeypatch: pytest.MonkeyPatch, rows: int, z_weight: float) -> None:
    monkeypatch.setattr(losses, "chunk_rows", lambda *_: rows)
    hidden, weight, targets, token_weights = example()
    loss, token_losses = linear_cross_entropy(hidden, weight, targets, token_weights, z_weight)
    (2.5 * loss).backward()
    gradients = [hidden.grad, weight.grad]
    hidden.grad = weight.grad = None
    reference = obvious(hidden, weight, targets, token_weights, z_weight)
    (2.5 * reference).backward()
    torch.testing.assert_close(loss, reference, rtol=0, atol=1e-6)
    torch.testing.assert_close(token_losses, F.cross_entropy(hidden @ weight.T, targets, reduction="none"), rtol=0, atol=1e-5)
    for gradient, expected in zip(gradients, [hidden.grad, weight.grad], strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


def test_gradient_of_hidden_alone_and_no_gradient() -> None:
    hidden, weight, targets, token_weights = example()
    loss, _ = linear_cross_entropy(hidden, weight.detach(), targets, token_weights)
    loss.backward()
    assert hidden.grad is not None
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, weight, targets, token_weights)[0], loss.detach())


def test_zero_weights_give_zero_and_not_nan() -> None:
    hidden, weight, targets, token_weights = example()
    loss, _ = linear_cross_entropy(hidden, weight, targets, torch.zeros_like(token_weights))
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad is not None
    assert hidden.grad.abs().max() == 0


def test_image_weight_scales_image_targets_only() -> None:
    is_image = torch.tensor([True, False, True])
    weights = torch.tensor([1.0, 1.0, 0.5])
    assert balanced_weights(is_image, weights, 0.5).tolist() == [0.5, 1.0, 0.25]
    assert balanced_weights(is_image, weights, 1.0) is weights


def test_gradients_are_handed_over_once_and_exist_without_tokens() -> None:
    hidden, weight, targets, token_weights = example()
    loss, _ = linear_cross_entropy(hidden, weight, targets, token_weights)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()
    weight.grad = None
    loss, token_losses = linear_cross_entropy(hidden[:0], weight, targets[:0], token_weights[:0])
    loss.backward()
    assert len(token_losses) == 0
    assert torch.equal(weight.grad, torch.zeros_like(weight))
