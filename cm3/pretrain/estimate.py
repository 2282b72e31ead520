"""What a language model's run will need, by arithmetic on its configuration (`cm3.model.counting`): nothing has to fit into
memory to find out that it does not.

A step adds to what `cm3.train.estimate` counts: stored activations, a chunk of logits and the gradient that the loss holds; with
the back end "sdpa" the mask over whole rows, with "eager" the scores too.
"""

from __future__ import annotations

import os
from bisect import bisect_left

import torch

from cm3.core.available_memory import available_memory
from cm3.model import CM3Config
from cm3.model.counting import count_parameters, flops_per_token, training_memory
from cm3.pretrain.attention import Attention, back_end
from cm3.pretrain.losses import chunk_rows
from cm3.sequences.loader import LoaderConfig
from cm3.train import estimate
from cm3.train.config import TrainConfig
from cm3.train.estimate import USABLE_SHARE, RunEstimate, bytes_per_number, expected_seconds, training_device


def estimate_run(
    model: CM3Config,
    loader: LoaderConfig,
    config: TrainConfig,
    context: float | None = None,
    trained: int | None = None,
    attention: Attention = "auto",
) -> RunEstimate:
    """The estimate for training `model` as `loader` and `config` say.

    context: mean length of the document around a token; trained: how many numbers change (None: all of the model);
    attention: the back end that was asked for.
    """
    processes, device = int(os.environ.get("WORLD_SIZE", "1")), training_device(config)
    tokens = config.steps * config.accumulation_steps * processes * loader.batch_size * loader.row_length
    flops = tokens * flops_per_token(model, int(context or loader.row_length))
    return RunEstimate(
        parameters=count_parameters(model).total,
        state_bytes=state_bytes(model, config, processes, trained),
        step_bytes=step_bytes(model, loader, config, device, trained, attention),
        available_bytes=available_memory(device),
        examples=tokens,
        unit="tokens",
        flops=flops,
        seconds=expected_seconds(flops / processes, config, device),
        remedy=lambda: _remedy(model, loader, config, processes, device, trained, attention),
    )


def state_bytes(model: CM3Config, config: TrainConfig, processes: int, trained: int | None = None) -> int:
    """What stays in memory between steps on one process, `trained` numbers of the model changing."""
    count = count_parameters(model)
    changing = count.total if trained is None else trained
    gathered = count.blocks // model.num_hidden_layers + count.embeddings  # one block at a time
    return estimate.state_bytes(config, processes, count.total, changing, min(count.blocks, changing), whole=gathered)


def step_bytes(
    model: CM3Config,
    loader: LoaderConfig,
    config: TrainConfig,
    device: torch.device,
    trained: int | None = None,
    attention: Attention = "auto",
) -> int:
    """What a micro-batch adds: activations, on a CPU those of attention once more by document, what the back end keeps of whole
    rows, one chunk of logits and, when the output embedding is trained (`trained` None), its gradient in fp32."""
    each = bytes_per_number(config, device)
    tokens = loader.batch_size * loader.row_length
    kept = training_memory(model, tokens, each, checkpointing=config.activation_checkpointing).activations
    if config.activation_checkpointing:  # one block is computed again at a time
        kept += training_memory(model, tokens, each).activations // model.num_hidden_layers
    if device.type == "cpu":  # queries, keys, values and results in fp32
        kept += 4 * 4 * tokens * model.hidden_size * (1 if config.activation_checkpointing else model.num_hidden_layers)
    kept += _row_squares(model, config, back_end(attention, config)) * loader.batch_size * loader.row_length**2
    gradient = 4 * model.vocab_size * model.hidden_size if trained is None else 0
    return kept + gradient + 3 * 4 * model.vocab_size * chunk_rows(model.vocab_size, device)


def _row_squares(model: CM3Config, config: TrainConfig, attention: Attention) -> int:
    """Bytes per pair of places in a row: the mask in fp32, and with "eager" the scores and weights of every head."""
    if attention == "eager":
        return 4 + 2 * 4 * model.num_attention_heads * (1 if config.activation_checkpointing else model.num_hidden_layers)
    return 4 if attention == "sdpa" else 0


def _remedy(
    model: CM3Config,
    loader: LoaderConfig,
    config: TrainConfig,
    processes: int,
    device: torch.device,
    trained: int | None,
    attention: Attention,
) -> str:
    """The smallest change that makes the run fit, in words."""
    room = USABLE_SHARE * available_memory(device)

    def fits(batch_size: int, **changes: object) -> bool:
        changed, smaller = config.model_copy(update=changes), loader.model_copy(update={"batch_size": batch_size})
        step = step_bytes(model, smaller, changed, device, trained, attention)
        return state_bytes(model, changed, processes, trained) + step <= room

    size = loader.batch_size
    options: list[tuple[str, dict[str, object]]] = [("", {})]
    if not config.activation_checkpointing:
        options.append(("train.activation_checkpointing=true", {"activation_checkpointing": True}))
    if config.sharding == "none" and processes > 1:
        options.append(("train.sharding=full", {"sharding": "full", "async_save": False}))
        options.append(
            ("train.sharding=full train.activation_checkpointing=true", {**options[-1][1], "activation_checkpointing": True})
        )
    for text, changes in options:
        if text and fits(size, **changes):
            return f"set {text}"
        # how many of the sizes below fit is the largest that does
        smaller = bisect_left(range(1, size), True, key=lambda count: not fits(count, **changes))
        if smaller > 0:
            steps = -(-size * config.accumulation_steps // smaller)
            return f"set loader.batch_size={smaller} train.accumulation_steps={steps} {text}".rstrip()
    return "choose a smaller model.preset, shorter rows (loader.row_length), or more processes with train.sharding=full"
