"""Transformers' Chameleon with the weights of one of our models, and the loops that decode pictures with it.

guided_generate     `generate(guidance_scale=…)`: two forwards per token, all logits
two_stream_loop     both streams of all candidates as rows of one forward, static cache, all logits: the loop that transformers
                    writes out for its Janus model
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, LogitsProcessor, StaticCache

from cm3.decode import Prompt
from cm3.model import CM3Config, CM3ForCausalLM, preset
from cm3.tokens import Span, Vocab


def chameleon_config(vocab: Vocab, width: int, layers: int, inner: int, context: int = 1024) -> CM3Config:
    """Our configuration of a small Chameleon over the ids of `vocab`."""
    return preset(
        "chameleon-7b", hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64, intermediate_size=inner,
        vocab_size=vocab.size, dropout=0.0, max_position_embeddings=context, grid_shape=vocab.grid_shape,
        image_start=vocab.image_start, image_stop=vocab.image_stop,
    )  # fmt: skip


def random_prompt(vocab: Vocab, tokens: int) -> Prompt:
    """`<bos>`, `tokens` random text tokens, `<break>`."""
    text = np.random.default_rng(0).integers(vocab.text_start, vocab.text_stop, tokens)
    ids = np.concatenate([[vocab.bos_id], text, [vocab.break_id]])
    return Prompt(vocab, ids, np.zeros(len(ids), np.int64), (Span("text", 1, 1 + tokens),))


class OnlyImages(LogitsProcessor):
    """Transformers' way to keep to the codes of pictures: -inf everywhere else."""

    def __init__(self, vocab: Vocab) -> None:
        self.mask = torch.full((vocab.size,), -torch.inf)
        self.mask[vocab.image_start : vocab.image_stop] = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + self.mask


def chameleon_of(model: CM3ForCausalLM) -> ChameleonForConditionalGeneration:
    """The same weights as transformers' Chameleon; its image tokenizer is not used and as small as it can be."""
    ours = model.config
    config = ChameleonConfig(
        vocab_size=ours.vocab_size, hidden_size=ours.hidden_size, intermediate_size=ours.intermediate_size,
        num_hidden_layers=ours.num_hidden_layers, num_attention_heads=ours.num_attention_heads,
        num_key_value_heads=ours.num_key_value_heads, max_position_embeddings=ours.max_position_embeddings,
        vocabulary_map={"<image>": 4}, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        vq_config={"base_channels": 32, "channel_multiplier": [1, 1], "num_embeddings": 16, "resolution": 32},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        peer = ChameleonForConditionalGeneration(config).eval()
    missing, unexpected = peer.load_state_dict(model.state_dict(), strict=False)
    if unexpected or any("vqmodel" not in name for name in missing):
        raise ValueError(f"the weights do not fit: {unexpected[:3]}, {[n for n in missing if 'vqmodel' not in n][:3]}")
    return peer


def guided_generate(peer: ChameleonForConditionalGeneration, prompt: Prompt, scale: float, only: OnlyImages) -> list[int]:
    """The codes of one picture, greedy."""
    row = torch.from_numpy(prompt.token_ids)[None]
    blank = torch.from_numpy(prompt.without("text").token_ids)[None]
    count = prompt.vocab.num_image_tokens
    made = peer.generate(
        row, attention_mask=torch.ones_like(row), negative_prompt_ids=blank,
        negative_prompt_attention_mask=torch.ones_like(blank), guidance_scale=scale, do_sample=False,
        max_new_tokens=count, min_new_tokens=count, logits_processor=[only],
    )  # fmt: skip
    return made[0, row.shape[1] :].tolist()


@torch.inference_mode()
def two_stream_loop(
    peer: ChameleonForConditionalGeneration, prompt: Prompt, scale: float, only: OnlyImages, candidates: int = 1
) -> list[list[int]]:
    """The codes of `candidates` pictures of one prompt, greedy; every candidate has two rows with the whole prompt."""
    streams = [ids for ids in (prompt.token_ids, prompt.without("text").token_ids) for _ in range(candidates)]
    longest, count = max(map(len, streams)), prompt.vocab.num_image_tokens
    given = torch.zeros(len(streams), longest, dtype=torch.int64)
    mask = torch.ones(len(streams), longest + count, dtype=torch.int64)
    for row, ids in enumerate(streams):
        given[row, longest - len(ids) :] = torch.from_numpy(ids)
        mask[row, : longest - len(ids)] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    cache = StaticCache(config=peer.config, max_cache_len=longest + count)
    place, tokens = positions[:, :longest], []
    for step in range(count):
        logits = peer(
            input_ids=given, attention_mask=mask[:, : longest + step], position_ids=place, past_key_values=cache,
            logits_to_keep=1, use_cache=True,
        ).logits[:, -1]  # fmt: skip
        conditional, without = logits.chunk(2)
        token = (without + scale * (conditional - without) + only.mask).argmax(dim=-1)  # (candidates,)
        tokens.append(token)
        given, place = token.repeat(2)[:, None], positions[:, longest + step, None]
    return torch.stack(tokens, dim=1).tolist()
