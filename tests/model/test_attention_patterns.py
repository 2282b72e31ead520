"""Masks against a triple loop, and the index-by-index form against the matrix."""

import torch

from cm3.model.attention_patterns import additive, causal, document_mask_function

DOCUMENTS = torch.tensor([[1, 1, 2, 2, 2, 0], [5, 5, 5, 5, 6, 6]])


def test_causal_document_mask_against_a_loop() -> None:
    mask = causal(6, DOCUMENTS, torch.device("cpu"))
    assert mask.shape == (2, 1, 6, 6)
    for row in range(2):
        for query in range(6):
            for key in range(6):
                expected = key <= query and DOCUMENTS[row, query] == DOCUMENTS[row, key]
                assert bool(mask[row, 0, query, key]) == bool(expected)


def test_without_documents_it_is_lower_triangular() -> None:
    assert torch.equal(causal(5, None, torch.device("cpu"))[0, 0], torch.ones(5, 5).tril().bool())


def test_mask_function_is_the_same_relation() -> None:
    same = document_mask_function(DOCUMENTS)
    batch, query, key = torch.meshgrid(torch.arange(2), torch.arange(6), torch.arange(6), indexing="ij")
    together = same(batch, None, query, key) & (key <= query)
    assert torch.equal(together, causal(6, DOCUMENTS, torch.device("cpu"))[:, 0])


def test_additive_is_zero_or_minus_infinity() -> None:
    values = additive(causal(3, None, torch.device("cpu")), torch.float32)[0, 0]
    inf = float("inf")
    assert torch.equal(values, torch.tensor([[0, -inf, -inf], [0, 0, -inf], [0, 0, 0]]))
