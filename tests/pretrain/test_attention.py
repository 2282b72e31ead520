"""Attention back ends: chosen by device, and all of them keep packed documents apart."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from cm3.core.seeding import numpy_generator
from cm3.model.attention_patterns import additive, causal, document_mask_function
from cm3.model.presets import create_model, preset
from cm3.pretrain.attention import for_decoding, use_attention
from cm3.pretrain.objective import LossConfig, TokenObjective
from cm3.sequences import collate
from cm3.tokens import Vocab, assemble
from cm3.train.config import TrainConfig

SIZES = {"vocab_size": 40, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_the_back_end_follows_the_device(monkeypatch):
    model = create_model(preset("tiny", **SIZES), 0)
    by_document = "sdpa_by_document"
    for available, device, expected in (
        (False, "auto", by_document),
        (True, "auto", "flex_attention"),
        (True, "cpu", by_document),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)  # noqa: B023
        use_attention(model, "auto", TrainConfig(device=device, precision="fp32"))
        assert model.config._attn_implementation == expected
    use_attention(model, "auto", TrainConfig(device="cpu", compile=True))
    assert model.config._attn_implementation == "sdpa"
    use_attention(model, "flex_attention", TrainConfig())
    with for_decoding(model) as fitting:
        assert fitting.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "flex_attention"


@pytest.mark.parametrize("rows", [[[9, 20, 3], [40], []], [[], []]])
def test_by_document_the_objective_is_that_of_whole_rows(rows):
    """Padding is left out of the computation, and nothing of the loss, its parts and its gradients changes."""
    vocab = Vocab(text_size=20, codebook_size=8, grid_shape=(2, 2))
    generator = numpy_generator(0, "documents")
    documents = [
        [
            assemble([("text", generator.integers(vocab.text_start, vocab.text_stop, length - 3))], vocab, str(length))
            for length in row
        ]
        for row in rows
    ]
    batch = collate(documents, 48, vocab.pad_id)
    found = []
    for back_end in ("sdpa", "sdpa_by_document"):
        model = create_model(preset("tiny", **{**SIZES, "vocab_size": vocab.size}), 0)
        model.set_attn_implementation(back_end)
        result = TokenObjective(model, vocab, LossConfig())(batch)
        result.loss.backward()
        layer = model.model.layers[0]
        gradients = [layer.self_attn.q_proj.weight.grad, layer.mlp.down_proj.weight.grad, model.lm_head.weight.grad]
        found.append([result.loss.detach(), result.weight, result.token_losses, *gradients])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


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
