"""How much memory decoding takes, asked before it begins.

A request of S streams holds keys and values of every token it has seen, S · (prompt + answer) · bytes per token, and for a
moment those of its prompt once more, while the cache takes them over, and logits and noise of its newest places. Beside them
stands what one forward of the prefill needs. Prompts that are shared take less; the estimate does not count on it.
"""

from __future__ import annotations

import torch

from cm3.core.available_memory import available_memory
from cm3.core.counts import require_positive
from cm3.core.errors import UsageError
from cm3.decode.prefill import TOKENS_AT_ONCE
from cm3.model import CM3Config
from cm3.model.counting import kept_per_layer

USABLE = 0.8  # the share of free memory that decoding may take
_BYTES_PER_ANSWER = 1024  # of Python's objects for a request, its answer and what becomes of it, about
_NUMBERS_PER_ID = 8  # float32 logits of the streams, their combination, the sorted copy and the noise of one place


def bytes_per_token(config: CM3Config, dtype: torch.dtype) -> int:
    """Keys and values of one token of one row: 2 · L · G · K numbers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize


def request_bytes(config: CM3Config, dtype: torch.dtype, streams: int, prompt: int, answer: int, window: int = 1) -> int:
    """What one request of `streams` streams with `prompt` and `answer` tokens holds at most.

    window: how many tokens are tried at once; they take room behind the answer, and one place of logits each and another
    one for each guess behind them.
    """
    room, places = (answer + window, 2 * window - 1) if window > 1 else (answer, 1)
    return streams * ((2 * prompt + room) * bytes_per_token(config, dtype) + places * _NUMBERS_PER_ID * 4 * config.vocab_size)


def prefill_bytes(config: CM3Config, dtype: torch.dtype, streams: int, prompt: int) -> int:
    """What one forward over `streams` prompts of `prompt` tokens needs beside their keys and values, at most.

    That is one layer's activations, the mask, and the keys and values of all layers again when they are joined.
    """
    tokens = min(streams * prompt, max(TOKENS_AT_ONCE, prompt))
    return tokens * (bytes_per_token(config, dtype) + (kept_per_layer(config) + 2 * prompt) * dtype.itemsize)


def require_memory(needed: int, free: int, what: str, remedy: str) -> None:
    """Raise `UsageError` when `needed` bytes for `what` are more than may be taken; `remedy` says what to do."""
    if needed > USABLE * free:
        raise UsageError(f"{what} need about {_shown(needed)} of memory and {_shown(int(USABLE * free))} can be taken; {remedy}")


def require_answer_memory(n: int, what: str, tokens: int, side: int = 0) -> None:
    """Refuse more answers than memory holds, before the first is asked for: `n` of `what`, each of at most `tokens` tokens.

    side: of the picture of side × side pixels that each has (0: none). Raises `UsageError`, also when `n` is below 1.
    """
    require_positive(n=n)
    needed = n * (_BYTES_PER_ANSWER + 8 * tokens + 3 * side**2)  # int64 ids, RGB bytes
    require_memory(needed, available_memory(torch.device("cpu")), f"{n} {what}", "ask for fewer at a time")


def _shown(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(1, count >> 20)} MiB"
