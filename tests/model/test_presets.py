"""Every preset builds (on the meta device) and its sizes are those of the paper."""

import pytest
import torch

from cm3.core.errors import UsageError
from cm3.model import PRESETS, CM3Config, CM3ForCausalLM, preset
from cm3.model.counting import cache_bytes_per_token, count_parameters, flops_per_token, training_memory

BILLIONS = {"cm3leon-350m": 0.37, "cm3leon-760m": 0.79, "cm3leon-7b": 6.73, "chameleon-7b": 7.0, "chameleon-34b": 34.0}


@pytest.mark.parametrize("name", list(PRESETS))
def test_counted_parameters_equal_the_module(name: str) -> None:
    config = preset(name)
    with torch.device("meta"):
        model = CM3ForCausalLM(config)
    count = count_parameters(config)
    assert count.total == sum(parameter.numel() for parameter in model.parameters())
    if name in BILLIONS:
        assert count.total / 1e9 == pytest.approx(BILLIONS[name], rel=0.03)


def test_counts_follow_biases_and_grid() -> None:
    config = CM3Config(
        attention_bias=True, grid_embedding=True, grid_shape=(3, 5), norm="rmsnorm", qk_norm="per_head", num_key_value_heads=2
    )
    assert count_parameters(config).total == sum(p.numel() for p in CM3ForCausalLM(config).parameters())


def test_flops_against_the_reference_formula() -> None:
    config = preset("cm3leon-7b")
    count = count_parameters(config)
    formula = 6 * count.matrices + 6 * 32 * 4096 * 4096  # 6 N + 6 L d s, causal rows of s = 4096
    assert flops_per_token(config, 4096) == pytest.approx(formula)
    assert flops_per_token(config, 4096, training=False) == pytest.approx(formula / 3)
    assert cache_bytes_per_token(config) == 512 * 1024


def test_training_memory_adds_up() -> None:
    config = preset("tiny")
    memory = training_memory(config, tokens_per_step=4096)
    total = count_parameters(config).total
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * total, 4 * total, 8 * total)
    assert memory.total > memory.activations > training_memory(config, 4096, checkpointing=True).activations


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="cm3leon-350m"):
        preset("cm3leon-350")
    with pytest.raises(UsageError, match="hidden_size"):
        preset("tiny", hiden_size=12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "not a multiple"),
        ({"hidden_size": 12, "num_attention_heads": 4}, "must be even"),
        ({"grid_embedding": True}, "grid_shape"),
        ({"grid_shape": (0, 2)}, "grid_shape .* both at least 1"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be at least 1, got -1"),
        ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, got 0"),
        ({"head_dim": -2}, "head_dim must be at least 0, got -2"),
        ({"attention_pattern": "casual"}, r"unknown attention_pattern 'casual'.*causal"),
        ({"dropout": 1.0}, r"\[0, 1\)"),
        ({"norm": "batchnorm"}, "norm"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
)
def test_impossible_configurations_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(Exception, match=message):
        CM3Config(**fields)
