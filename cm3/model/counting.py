"""What a configuration costs: parameters, floating-point operations and bytes, by arithmetic on the configuration alone.

A matrix of n numbers costs 2 n operations per token forward and 4 n backward; attention over a row of length T adds
2 · 2 · (T / 2) · H · K per layer and token, since a causal query meets half of the row on average. Norms, activations and
softmax are left out, as is usual in model FLOP utilization (PaLM, Chowdhery et al. 2022, appendix B).
"""

from __future__ import annotations

from dataclasses import dataclass

from cm3.model.configuration import CM3Config


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of learned parameters. `total` counts tied embeddings once; `vectors` are the gains and biases among `blocks`;
    `matrices` is what every token is multiplied with (blocks and head, no vectors, no look-up tables)."""

    total: int
    embeddings: int
    blocks: int
    head: int
    vectors: int = 0

    @property
    def matrices(self) -> int:
        return self.blocks - self.vectors + self.head


def count_parameters(config: CM3Config) -> ParameterCount:
    """Parameters of a `CM3ForCausalLM` of this configuration; `total` equals the sum over `model.parameters()`."""
    width, head_dim = config.hidden_size, config.head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    attention = width * head_dim * (2 * heads + 2 * kv_heads)
    biases = (head_dim * (heads + 2 * kv_heads) + width) if config.attention_bias else 0
    gains = {"none": 0, "shared": 2 * head_dim, "per_head": 2 * head_dim * (heads + kv_heads)}[config.qk_norm]
    mlp = width * config.intermediate_size * (3 if config.activation == "swiglu" else 2)
    norm = width if config.norm == "rmsnorm" else 0
    vectors = config.num_hidden_layers * (biases + gains + 2 * norm)
    blocks = config.num_hidden_layers * (attention + mlp) + vectors
    head = config.vocab_size * width
    places = config.max_position_embeddings if config.position_embedding == "learned" else 0
    places += sum(config.grid_shape or ()) if config.grid_embedding else 0
    embeddings = head + places * width
    total = blocks + norm + embeddings + (0 if config.tie_word_embeddings else head)
    return ParameterCount(total=total, embeddings=embeddings, blocks=blocks, head=head, vectors=vectors)


def flops_per_token(config: CM3Config, row_length: int, training: bool = True, head_fraction: float = 1.0) -> float:
    """Floating-point operations for one token of a causal row of `row_length` tokens.

    training: forward and backward (three times the forward). head_fraction: share of the head that is computed, below 1
    when only some rows get logits or only a range of ids is projected.
    """
    count = count_parameters(config)
    forward = 2.0 * (count.matrices - (1.0 - head_fraction) * count.head)
    attention_width = config.num_attention_heads * config.head_dim
    forward += config.num_hidden_layers * 4.0 * attention_width * row_length / 2
    return forward * (3.0 if training else 1.0)


def cache_bytes_per_token(config: CM3Config, bytes_per_number: int = 2) -> int:
    """Key and value bytes that one token of one stream keeps in the cache."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * bytes_per_number


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes a training step needs at its peak, on one device without sharding."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def training_memory(
    config: CM3Config, tokens_per_step: int, bytes_per_number: int = 4, optimizer_numbers: int = 2, checkpointing: bool = False
) -> TrainingMemory:
    """An estimate: weights and gradients in `bytes_per_number`, optimizer states in float32, stored activations per token.

    Activations: what a layer keeps for its backward pass (`kept_per_layer`), or D numbers with activation checkpointing;
    logits are not counted (losses work in chunks), nor what attention keeps when it writes its scores out.
    """
    total = count_parameters(config).total
    per_layer = config.hidden_size if checkpointing else kept_per_layer(config)
    kept = config.num_hidden_layers * per_layer + 2 * config.hidden_size  # the last norm's input and output
    activations = tokens_per_step * kept * bytes_per_number
    return TrainingMemory(total * bytes_per_number, total * bytes_per_number, 4 * optimizer_numbers * total, activations)


def kept_per_layer(config: CM3Config) -> int:
    """Numbers per token that one layer keeps: the inputs of norms and matrices, queries, keys, values and their mixture,
    and of the feed-forward what its activation needs (SwiGLU: gate and factor, beside the product)."""
    width, queries = config.hidden_size, config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    kept = 4 * width + 2 * queries + 2 * keys
    kept += 2 * (queries + keys) if config.qk_norm != "none" else 0  # before and after their norm
    kept += 2 * width if config.dropout else 0  # the masks
    return kept + {"swiglu": 3, "relu": 1}.get(config.activation, 2) * config.intermediate_size
