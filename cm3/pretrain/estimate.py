"""What a run will need, before its first step: memory per process and time; and a refusal that says what to change.

By arithmetic on the configuration (`cm3.model.counting`), so nothing has to fit into memory to find out that it does not.
Memory: weights, gradients, optimizer states, averages, the copy of an asynchronous save, stored activations, a chunk of logits
and the gradient that the loss holds; with the back end "sdpa" the mask over whole rows, with "eager" the scores too. Time:
operations over the speed of a matrix product measured now, at the share of it that training usually reaches; an order of
magnitude to plan by, no promise.
"""

from __future__ import annotations

import os
import sys
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cm3.core.available_memory import available_memory
from cm3.core.errors import UsageError
from cm3.model import CM3Config
from cm3.model.counting import count_parameters, flops_per_token, training_memory
from cm3.pretrain.attention import Attention, back_end
from cm3.pretrain.losses import chunk_rows
from cm3.sequences.loader import LoaderConfig
from cm3.train.config import TrainConfig
from cm3.train.precision import autocast_dtype
from cm3.train.processes import is_main_process

EXPECTED_SHARE = 0.4  # of the speed of one large matrix product, which training as a whole usually reaches
_USABLE_SHARE = 0.95


@dataclass(frozen=True)
class RunEstimate:
    """What one process needs: `state_bytes` (weights, gradients, optimizer, averages), `step_bytes` (activations, mask, logits
    and their gradient); `available_bytes` there are; `tokens` and `flops` of the whole run, `seconds` for it; `remedy` if memory
    is short."""

    parameters: int
    state_bytes: int
    step_bytes: int
    available_bytes: int
    tokens: int
    flops: float
    seconds: float
    remedy: Callable[[], str]

    @property
    def total_bytes(self) -> int:
        """Memory at the peak of a step."""
        return self.state_bytes + self.step_bytes

    @property
    def fits(self) -> bool:
        """Whether memory suffices, with a little to spare."""
        return self.total_bytes <= _USABLE_SHARE * self.available_bytes

    def require_room(self) -> None:
        """Raise `UsageError`, saying what to change, unless the run fits into memory."""
        if not self.fits:
            raise UsageError(
                f"the run needs about {_gib(self.total_bytes)} per process ({_gib(self.state_bytes)} for weights and optimizer, "
                f"{_gib(self.step_bytes)} for a step), {_gib(self.available_bytes)} are free; {self.remedy()}"
            )

    def __str__(self) -> str:
        time_text = f"{self.seconds / 3600:.1f} h" if self.seconds >= 5400 else f"{self.seconds / 60:.0f} min"
        return (
            f"estimate: {self.parameters / 1e6:.1f}M parameters, {self.tokens / 1e6:.1f}M tokens, about {_gib(self.total_bytes)} "
            f"of {_gib(self.available_bytes)} per process, roughly {time_text} ({self.flops:.1e} operations)"
        )


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
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")
    tokens = config.steps * config.accumulation_steps * processes * loader.batch_size * loader.row_length
    flops = tokens * flops_per_token(model, int(context or loader.row_length))
    return RunEstimate(
        parameters=count_parameters(model).total,
        state_bytes=state_bytes(model, config, processes, trained),
        step_bytes=step_bytes(model, loader, config, device, trained, attention),
        available_bytes=available_memory(device),
        tokens=tokens,
        flops=flops,
        seconds=flops / processes / (EXPECTED_SHARE * matrix_speed(device, autocast_dtype(config.precision, device))),
        remedy=lambda: _remedy(model, loader, config, processes, device, trained, attention),
    )


def state_bytes(model: CM3Config, config: TrainConfig, processes: int, trained: int | None = None) -> int:
    """What stays in memory between steps on one process, `trained` numbers of the model changing: everything is float32."""
    count = count_parameters(model)
    changing = count.total if trained is None else trained
    # Muon keeps one number per hidden weight
    moments = 2 * changing - (min(count.blocks, changing) if config.optimizer == "muon" else 0)
    copies = count.total + changing + moments + (count.total if config.ema_decay is not None else 0)
    if config.async_save:
        copies += copies - changing  # everything but the gradients
    if config.sharding == "full" and processes > 1:
        return 4 * copies // processes + 4 * 2 * (
            count.blocks // model.num_hidden_layers + count.embeddings
        )  # one block gathered
    return 4 * copies + (4 * changing if processes > 1 else 0)  # the buckets of the exchange


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
    bytes_per_number = 4 if autocast_dtype(config.precision, device) is None else 2
    tokens = loader.batch_size * loader.row_length
    kept = training_memory(model, tokens, bytes_per_number, checkpointing=config.activation_checkpointing).activations
    if config.activation_checkpointing:  # one block is computed again at a time
        kept += training_memory(model, tokens, bytes_per_number).activations // model.num_hidden_layers
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


def matrix_speed(device: torch.device, dtype: torch.dtype | None) -> float:
    """Operations per second of a large square matrix product, the best of three (some hundredths of a second)."""
    size = 4096 if device.type == "cuda" else 512
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):  # the first one warms up
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def say_on_main_process(line: str) -> None:
    """A line on stderr, from one process, unless progress is switched off."""
    if is_main_process() and os.environ.get("CM3_PROGRESS", "") != "off":
        print(line, file=sys.stderr, flush=True)


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
    room = _USABLE_SHARE * available_memory(device)

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


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
