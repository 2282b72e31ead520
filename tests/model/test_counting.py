"""The cost counters against what PyTorch counts while the model runs."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from cm3.model import CM3Config, create_model
from cm3.model.counting import cache_bytes_per_token, flops_per_token, training_memory

SHAPE = {"vocab_size": 500, "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3, "num_hidden_layers": 3}
VARIANTS = [
    {},
    {"activation": "relu", "norm": "rmsnorm", "position_embedding": "learned", "tie_word_embeddings": False},
    {"activation": "gelu", "qk_norm": "per_head", "dropout": 0.1, "attention_bias": True},
]
NAMES = ["swiglu", "relu", "gelu"]
BATCH, LENGTH = 2, 24


def tokens() -> torch.Tensor:
    return torch.randint(0, 500, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", VARIANTS, ids=NAMES)
def test_flops_are_those_that_run(variant: dict) -> None:
    config = CM3Config(**SHAPE, **variant)
    model = create_model(config, seed=0)
    model.set_attn_implementation("eager")  # whose products the counter sees; it computes the masked half of the scores too
    counter = FlopCounterMode(display=False)
    with counter:
        model(tokens(), labels=tokens()).loss.backward()
    masked_half = 3 * config.num_hidden_layers * 4 * config.hidden_size * LENGTH / 2
    assert counter.get_total_flops() == BATCH * LENGTH * (flops_per_token(config, LENGTH) + masked_half)


def test_cache_bytes_are_those_that_are_kept() -> None:
    config = CM3Config(**SHAPE)
    cache = DynamicCache(config=config)
    create_model(config, seed=0)(tokens(), past_key_values=cache, use_cache=True)
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kept == BATCH * LENGTH * cache_bytes_per_token(config, bytes_per_number=4)


@pytest.mark.parametrize("variant", VARIANTS, ids=NAMES)
def test_activation_memory_is_what_is_saved(variant: dict) -> None:
    config = CM3Config(**SHAPE, **variant)
    model = create_model(config, seed=0)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}
    alive = []  # so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.model(tokens()).last_hidden_state  # the estimate leaves the logits out, as chunked losses do
    estimate = training_memory(config, BATCH * LENGTH).activations
    assert estimate == pytest.approx(sum(saved.values()), rel=0.05)
    assert hidden.shape == (BATCH, LENGTH, config.hidden_size)
