"""What every quantizer keeps: equal codes on both paths, gradients, k-means start; and what only some do."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from vector_quantize_pytorch import VectorQuantize

from cm3.core.errors import UsageError
from vqgan.config import VQConfig
from vqgan.quantizers import QUANTIZERS
from vqgan.quantizers.ibq import IBQOptions
from vqgan.quantizers.quantizer import Quantizer, to_rows

SIZES = {"fsq": 240}


def _quantizer(name: str, **changes: object) -> Quantizer:
    torch.manual_seed(0)
    settings = {"quantizer": name, "codebook_size": SIZES.get(name, 64), "codebook_dim": 8, **changes}
    return QUANTIZERS.get(name)(VQConfig.model_validate(settings))


def _latents(*, seed: int = 1) -> torch.Tensor:
    return torch.randn(4, 8, 5, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", QUANTIZERS.names())
def test_both_paths_give_the_same_codes_and_vectors(name: str) -> None:
    quantizer, latents = _quantizer(name).eval(), _latents()  # type: ignore[attr-defined]
    quantizer.initialize(to_rows(latents), torch.ones(60), 0)
    result = quantizer(latents)
    codes = quantizer.encode(latents)
    assert codes.shape == (4, 5, 3)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, result.codes)
    assert torch.allclose(quantizer.lookup(codes), result.quantized, atol=1e-5)
    assert torch.allclose(quantizer.lookup(codes)[1, :, 2, 1], quantizer.codebook()[codes[1, 2, 1]])
    assert quantizer.codebook().shape == (quantizer.codebook_size, 8)


@pytest.mark.parametrize("name", QUANTIZERS.names())
def test_gradients_reach_the_latents(name: str) -> None:
    quantizer, latents = _quantizer(name).train(), _latents().requires_grad_()  # type: ignore[attr-defined]
    result = quantizer(latents)
    (result.quantized.square().mean() + result.loss).backward()
    assert latents.grad is not None
    assert torch.isfinite(latents.grad).all()
    assert latents.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["vq", "ema", "rotation"])
def test_kmeans_start_lowers_the_error(name: str) -> None:
    quantizer, latents = _quantizer(name).eval(), _latents()  # type: ignore[attr-defined]
    before = F.mse_loss(quantizer.lookup(quantizer.encode(latents)), latents)
    quantizer.initialize(to_rows(latents), torch.ones(60), 0)
    after = F.mse_loss(quantizer.lookup(quantizer.encode(latents)), latents)
    assert after < 1e-4 < before  # 60 points, 64 codes


def test_straight_through_hands_the_gradient_on_unchanged() -> None:
    latents = _latents().requires_grad_()
    upstream = _latents(seed=5)
    result = _quantizer("vq")(latents)
    (result.quantized * upstream).sum().backward()
    assert latents.grad is not None
    assert torch.allclose(latents.grad, upstream)


def test_commitment_weight_stands_where_the_paper_has_it() -> None:
    quantizer, latents = _quantizer("vq", quantizer_options={"commitment": 0.25}), _latents().requires_grad_()
    result = quantizer(latents)
    result.loss.backward()
    vectors = quantizer.lookup(result.codes).detach()
    expected = 0.25 * 2 * (latents.detach() - vectors) / latents.numel()
    assert latents.grad is not None
    assert torch.allclose(latents.grad, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "cosine", "rotation"), [("ema", False, False), ("cosine", True, False), ("rotation", False, True)]
)
def test_a_training_step_is_that_of_the_library(name: str, cosine: bool, rotation: bool) -> None:
    quantizer = _quantizer(name).train()  # type: ignore[attr-defined]
    settings = {"use_cosine_sim": cosine, "rotation_trick": rotation, "decay": 0.99, "commitment_weight": 0.25}
    reference = VectorQuantize(dim=8, codebook_size=64, accept_image_fmap=True, **settings).train()
    reference.load_state_dict(quantizer.library.state_dict())
    mine, theirs = _latents().requires_grad_(), _latents().requires_grad_()
    result = quantizer(mine)
    quantized, codes, loss = reference(theirs)
    assert torch.equal(result.codes, codes)
    assert torch.allclose(result.quantized, quantized, atol=1e-6)
    assert torch.allclose(result.loss, loss.sum(), atol=1e-6)
    upstream = _latents(seed=5)
    ((result.quantized * upstream).sum() + result.loss).backward()
    ((quantized * upstream).sum() + loss.sum()).backward()
    assert torch.allclose(mine.grad, theirs.grad, atol=1e-5)  # type: ignore[arg-type]
    for key, tensor in reference.state_dict().items():
        assert torch.allclose(quantizer.library.state_dict()[key], tensor, atol=1e-6), key


def test_moving_averages_follow_the_latents() -> None:
    quantizer = _quantizer("ema", codebook_size=2, codebook_dim=1, quantizer_options={"decay": 0.5}).train()  # type: ignore[attr-defined]
    quantizer.initialize(torch.tensor([[-1.0], [1.0]]), torch.ones(2), 0)
    latents = torch.tensor([-3.0, -3.0, 5.0, 5.0]).view(1, 1, 2, 2)
    for _ in range(20):
        quantizer(latents)
    assert torch.allclose(quantizer.codebook().flatten().sort().values, torch.tensor([-3.0, 5.0]), atol=1e-2)


def test_dead_codes_are_restarted_from_the_batch() -> None:
    options = {"decay": 0.5, "restart_below": 0.5}
    quantizer = _quantizer("ema", codebook_size=4, codebook_dim=2, quantizer_options=options).train()  # type: ignore[attr-defined]
    far = torch.tensor([[100.0, 0.0], [101.0, 0.0], [102.0, 0.0], [0.0, 0.0]])
    quantizer.initialize(far, torch.ones(4), 0)
    latents = 0.1 * torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for _ in range(8):
        quantizer(latents)
    assert torch.all(quantizer.codebook().abs() < 1)
    assert len(quantizer.encode(latents).unique()) > 1


def test_ibq_is_its_formula_written_out() -> None:
    """Row by row in float64: choices, vectors and loss, and the gradients at latents and at all code vectors."""
    options = {"commitment": 1.0, "codebook": 0.25, "entropy": 0.05, "temperature": 0.5}
    quantizer = _quantizer("ibq", codebook_size=16, quantizer_options=options).double()  # type: ignore[attr-defined]
    latents, upstream = _latents().double().requires_grad_(), _latents(seed=5).double()
    result = quantizer(latents)
    ((result.quantized * upstream).sum() + result.loss).backward()

    vectors = quantizer.codebook().detach().clone().requires_grad_()
    rows = [row.clone().requires_grad_() for row in to_rows(latents.detach())]
    handed_on, squares, entropy, total_shares = torch.zeros((), dtype=torch.float64), [], [], torch.zeros(16, dtype=torch.float64)
    for row, weight, code in zip(rows, to_rows(upstream), result.codes.flatten()):
        logits = torch.stack([(row * vector).sum() for vector in vectors])
        assert code == logits.argmax()
        soft = logits.exp() / logits.exp().sum()
        chosen = vectors[int(code)]
        given = chosen.detach() + sum((share - share.detach()) * vector for share, vector in zip(soft, vectors))
        given = given + (chosen - chosen.detach())  # the one-hot choice hands its vector a gradient as well
        handed_on = handed_on + (given * weight).sum()
        terms = (given - row, row - chosen.detach(), chosen - row.detach())
        squares.append(sum(factor * term.square().sum() for factor, term in zip((1.0, 1.0, 0.25), terms)))
        sharp = (logits / 0.5).exp() / (logits / 0.5).exp().sum()
        entropy.append(-(sharp * sharp.log()).sum())
        total_shares = total_shares + sharp
    mean = total_shares / len(rows)
    loss = sum(squares) / (len(rows) * 8) + 0.05 * (sum(entropy) / len(rows) + (mean * mean.log()).sum())
    assert torch.allclose(result.loss, loss, atol=1e-12)
    (handed_on + loss).backward()
    assert torch.allclose(to_rows(latents.grad), torch.stack([row.grad for row in rows]), atol=1e-10)  # type: ignore[arg-type]
    assert torch.allclose(quantizer.embedding.weight.grad, vectors.grad, atol=1e-10)  # type: ignore[arg-type]
    assert torch.all(vectors.grad.norm(dim=-1) > 0)  # type: ignore[union-attr]


def test_ibq_has_the_weights_of_its_authors() -> None:
    options = IBQOptions()
    weights = (options.commitment, options.codebook, options.entropy, options.temperature)
    assert weights == (1.0, 0.25, 0.05, 0.01)


def test_gumbel_anneals_on_the_papers_curves() -> None:
    quantizer = _quantizer("gumbel", downsample_factor=8, quantizer_options={"temperature_steps": 100, "kl_steps": 10})
    latents = _latents()
    quantizer.train()  # type: ignore[attr-defined]
    seen = {}
    for step in (0, 5, 10, 50, 100, 1000):
        quantizer.at_step(step)  # type: ignore[attr-defined]
        result = quantizer(latents)
        weight = float(result.loss.detach() / result.metrics["kl"]) * 3 * 8**2
        seen[step] = (round(float(result.metrics["temperature"]), 4), round(weight, 3))
    assert seen[0] == (1.0, 0.0)
    assert seen[5][1] == pytest.approx(3.3, abs=0.01)
    assert seen[10][1] == pytest.approx(6.6, abs=0.01)
    assert seen[50][0] == pytest.approx((1 + 1 / 16) / 2, abs=1e-3)
    assert seen[100] == seen[1000] == (pytest.approx(0.0625), pytest.approx(6.6, abs=0.01))


def test_gumbel_divergence_is_that_of_torch() -> None:
    quantizer, latents = _quantizer("gumbel"), _latents()
    logits = quantizer.proj(latents).permute(0, 2, 3, 1).reshape(-1, 64)  # type: ignore[attr-defined]
    uniform = torch.distributions.Categorical(probs=torch.ones(64))
    expected = torch.distributions.kl_divergence(torch.distributions.Categorical(logits=logits), uniform).mean()
    assert torch.allclose(quantizer(latents).metrics["kl"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("fsq", {"codebook_size": 100}, "no levels are known"),
        ("fsq", {"codebook_size": 240, "quantizer_options": {"levels": (8, 8)}}, "give 64 codes"),
        ("lfq", {"codebook_size": 100}, "power of two"),
        ("ema", {"quantizer_options": {"decai": 0.9}}, "did you mean 'decay'"),
    ],
)
def test_impossible_settings_are_refused_in_words(name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _quantizer(name, **changes)
