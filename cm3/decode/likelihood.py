"""How probable a model finds given documents: the score for reranking by the model itself, and for validation.

Document tokens in, the sum of log-probabilities of their weighted tokens out. Rows are padded on the right, where a causal
model cannot be disturbed by them, and only weighted positions are projected onto the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cm3.model import CM3ForCausalLM
from cm3.tokens import TokenizedDocument
from cm3.tokens.document_tokenizer import DocumentTokenizer
from cm3.tokens.turns import Turn, encode_turns


@torch.inference_mode()
def sequence_log_prob(model: CM3ForCausalLM, documents: Sequence[TokenizedDocument], batch_size: int = 64) -> Tensor:
    """(N,) float32: Σ log p(token | everything before it) over the tokens of each document with loss weight above 0.

    With `encode_turns` that is the probability of the trained turns given the others. Natural logarithm; 0 for a document
    in which no token has a weight.
    """
    model.eval()
    order = sorted(range(len(documents)), key=lambda index: len(documents[index]))
    scores = torch.zeros(len(documents))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        scores[torch.tensor(batch)] = _batch_log_prob(model, [documents[index] for index in batch])
    return scores


def answer_log_prob(model: CM3ForCausalLM, tokenizer: DocumentTokenizer, dialogs: Sequence[Sequence[Turn]]) -> Tensor:
    """(N,) float32: log p of the trained turns of each dialog given the others: how well the model says an answer itself."""
    return sequence_log_prob(model, [encode_turns(turns, tokenizer) for turns in dialogs])


def _batch_log_prob(model: CM3ForCausalLM, documents: Sequence[TokenizedDocument]) -> Tensor:
    device = model.device
    token_ids = _padded([document.token_ids for document in documents]).to(device)  # (B, T)
    grid_positions = _padded([document.grid_positions for document in documents]).to(device)
    counted = _padded([document.loss_weights > 0 for document in documents]).to(device)[:, 1:].bool()  # (B, T - 1)
    hidden = model.model(input_ids=token_ids, grid_positions=grid_positions).last_hidden_state[:, :-1]  # (B, T - 1, D)
    log_probs = model.project(hidden[counted]).float().log_softmax(dim=-1)  # (M, V)
    of_targets = log_probs.gather(1, token_ids[:, 1:][counted][:, None])[:, 0]  # (M,)
    rows = counted.nonzero()[:, 0]
    return torch.zeros(len(documents), device=device).index_add_(0, rows, of_targets).cpu()


def _padded(rows: Sequence[np.ndarray]) -> Tensor:
    padded = np.zeros((len(rows), max(len(row) for row in rows)), np.int64)
    for target, row in zip(padded, rows):
        target[: len(row)] = row
    return torch.from_numpy(padded)
