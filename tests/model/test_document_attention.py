"""Attention a document at a time gives what a mask over the packed row gives, whatever the lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3.model.document_attention import BY_DOCUMENT, pack_documents
from cm3.model.presets import create_model, preset

SIZES = {"vocab_size": 40, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
ROW = 48


def rows_of(lengths: list[list[int]]) -> torch.Tensor:
    """Document ids (B, ROW): documents of these lengths, counted from 1 in every row, then padding with 0."""
    ids = torch.zeros(len(lengths), ROW, dtype=torch.int64)
    for row, own in zip(ids, lengths, strict=True):
        start = 0
        for number, length in enumerate(own, 1):
            row[start : start + length] = number
            start += length
    return ids


def outcome(backend: str, documents: torch.Tensor, dtype: torch.dtype = torch.float32, **changes: int) -> list[torch.Tensor]:
    """Hidden states and two gradients of a model over random tokens in packed rows."""
    model = create_model(preset("tiny", **{**SIZES, **changes}), 0)
    model.set_attn_implementation(backend)
    tokens = torch.randint(40, documents.shape, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(ROW).expand_as(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        hidden = model.model(input_ids=tokens, position_ids=positions, document_ids=documents).last_hidden_state
    (hidden.float() * torch.linspace(-1, 1, ROW)[:, None]).square().mean().backward()
    layer = model.model.layers[0].self_attn
    return [hidden.detach().float(), layer.q_proj.weight.grad, layer.v_proj.weight.grad]


@given(st.lists(st.lists(st.integers(1, 20), max_size=6).filter(lambda lengths: sum(lengths) <= ROW), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_equals_the_mask_over_the_row(lengths: list[list[int]]) -> None:
    documents = rows_of(lengths)
    for found, expected in zip(outcome(BY_DOCUMENT, documents), outcome("sdpa", documents), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_shared_key_heads() -> None:
    documents = rows_of([[9, 20, 3], [40]])
    grouped = {"num_attention_heads": 4, "num_key_value_heads": 2}
    for found, expected in zip(outcome(BY_DOCUMENT, documents, **grouped), outcome("sdpa", documents, **grouped), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("heads", [2, 1])  # 32 wide, computed in fp32, and 64 wide
def test_inside_bf16(heads: int) -> None:
    documents = rows_of([[9, 20, 3], [40]])
    exact = outcome("sdpa", documents, num_attention_heads=heads)
    for found, expected in zip(outcome(BY_DOCUMENT, documents, torch.bfloat16, num_attention_heads=heads), exact, strict=True):
        assert 0 < (found - expected).abs().max() < 0.1 * float(expected.abs().max())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_every_token_has_one_place_in_a_group_of_like_lengths(lengths: list[int]) -> None:
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    packed = pack_documents(ids)
    tokens = torch.cat([group.flatten() for group in packed.groups])
    assert torch.equal(tokens[packed.places], torch.arange(sum(lengths)))
    assert sum(group.numel() for group in packed.groups) <= sum(lengths) / 0.75 + 1e-6


def test_without_document_ids_it_is_sdpa() -> None:
    model = create_model(preset("tiny", **SIZES), 0).eval()
    tokens = torch.randint(40, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(tokens).logits
        model.set_attn_implementation(BY_DOCUMENT)
        torch.testing.assert_close(model(tokens).logits, expected, atol=1e-5, rtol=1e-5)
        padded = model(tokens, attention_mask=torch.ones_like(tokens)).logits
    torch.testing.assert_close(padded, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("row", [[ROW], [1] * ROW])
def test_one_document_or_one_token_each(row: list[int]) -> None:
    documents = rows_of([row])
    for found, expected in zip(outcome(BY_DOCUMENT, documents), outcome("sdpa", documents), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
