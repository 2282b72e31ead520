"""Attention back ends: chosen by device, and all of them keep packed documents apart."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from cm3.model.attention_patterns import additive, causal, document_mask_function
from cm3.model.presets import create_model, preset
from cm3.pretrain.attention import for_decoding, use_attention
from cm3.train.config import TrainConfig

SIZES = {"vocab_size": 40, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_the_back_end_follows_the_device(monkeypatch):
    model = create_model(preset("tiny", **SIZES), 0)
    for available, device, expected in ((False, "auto", "sdpa"), (True, "auto", "flex_attention"), (True, "cpu", "sdpa")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)  # noqa: B023
        use_attention(model, "auto", TrainConfig(device=device, precision="fp32"))
        assert model.config._attn_implementation == expected
    use_attention(model, "flex_attention", TrainConfig())
    with for_decoding(model) as fitting:
        assert fitting.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "flex_attention"


@pytest.mark.parametrize(("heads", "expected"), [(2, "sdpa_fp32"), (1, "sdpa")])
def test_narrow_heads_leave_bf16_on_a_cpu(heads, expected):
    model = create_model(preset("tiny", **{**SIZES, "num_attention_heads": heads}), 0)
    use_attention(model, "auto", TrainConfig(device="cpu", precision="bf16"))
    assert model.config._attn_implementation == expected


def test_fp32_attention_inside_bf16():
    """Without autocast it is SDPA itself; within, closer to fp32 than SDPA in bf16, and gradients arrive."""
    model = create_model(preset("tiny", **SIZES), 0)
    tokens = torch.randint(40, (2, 24), generator=torch.Generator().manual_seed(0))
    documents = torch.arange(24)[None].expand(2, -1) // 10

    def run(backend, dtype):
        model.set_attn_implementation(backend)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            hidden = model.model(input_ids=tokens, document_ids=documents).last_hidden_state
        model.zero_grad()
        hidden.square().mean().backward()
        return hidden.detach().float(), model.model.layers[0].self_attn.q_proj.weight.grad.clone()

    exact, exact_gradient = run("sdpa", torch.float32)
    for result, expected in zip(run("sdpa_fp32", torch.float32), (exact, exact_gradient), strict=True):
        torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-5)
    lower, gradient = run("sdpa_fp32", torch.bfloat16)
    assert 0 < (lower - exact).abs().max() < 0.1
    torch.testing.assert_close(gradient, exact_gradient, atol=0.1 * float(exact_gradient.abs().max()), rtol=0.1)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_sees_what_sdpa_sees():
    """The mask function that FlexAttention gets against the additive mask of SDPA; uncompiled, the kernel is for GPUs."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 128, 16, generator=generator)  # (B, H, T, K) each
    documents = torch.ones(2, 128, dtype=torch.int64)
    documents[0, 50:], documents[1, 7:] = 2, 2
    documents[1, 100:] = 0  # padding
    same = document_mask_function(documents)
    block = create_block_mask(
        lambda b, h, q, k: (q >= k) & same(b, h, q, k), B=2, H=None, Q_LEN=128, KV_LEN=128, device="cpu", BLOCK_SIZE=16
    )
    mask = additive(causal(128, documents, torch.device("cpu")), torch.float32)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(flex_attention(query, key, value, block_mask=block), expected, atol=1e-5, rtol=1e-5)
