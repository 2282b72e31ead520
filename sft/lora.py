"""Low-rank adapters (LoRA, arXiv:2106.09685) through peft: tuning a large model by training a small part of it.

    model ──► add_adapters ──► training (the adapters alone) ──► merge_adapters ──► model of the same shape, and the adapters

A matrix W becomes W + alpha / rank · B A with A (rank, in) and B (out, rank); B starts at zero, so training starts from the model
as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from cm3.core import artefact
from cm3.core.errors import UsageError
from cm3.core.runfile import RunConfig
from cm3.model import CM3ForCausalLM
from cm3.train.processes import on_main_process
from cm3.train.sharding import whole

KIND = "lora_adapters"


class LoRAConfig(RunConfig):
    """rank: of every adapter; alpha: their scale is alpha / rank; dropout: on their input; targets: the names of the matrices
    that get one, in every layer (not `lm_head`, which the loss reads past any adapter)."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0, allow_inf_nan=False)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1)


def add_adapters(model: CM3ForCausalLM, config: LoRAConfig, seed: int) -> Any:
    """Put adapters into `model` (in place) and freeze all else; returns peft's view of it, for `merge_adapters`.

    Raises `UsageError` when peft is missing, or a target is no matrix of the model or its `lm_head`.
    """
    try:
        import peft
    except ImportError:
        raise UsageError("lora needs peft, which is not installed: pip install 'cm3-multimodal[train]'") from None
    if "lm_head" in config.targets:
        raise UsageError("lora.targets names 'lm_head'; the loss reads that matrix itself, past an adapter: leave it out")
    matrices = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    if unknown := [name for name in config.targets if name not in matrices]:
        others = ", ".join(sorted(matrices - {"lm_head"}))
        raise UsageError(f"lora.targets names {unknown[0]!r}; the matrices of this model are {others}")
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return peft.get_peft_model(model, settings)


def trainable_parameters(model: CM3ForCausalLM) -> int:
    """How many numbers training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def merge_adapters(adapted: Any, out: Path) -> CM3ForCausalLM:
    """Write the adapters to `out` in peft's layout, add them to the weights, and return the plain model.

    Called on every process: sharded adapters are gathered, and the first process writes.
    """
    state = {name: whole(tensor.detach()) for name, tensor in adapted.named_parameters() if tensor.requires_grad}

    def write() -> None:
        with artefact.writing(out, KIND, {}) as folder:
            adapted.save_pretrained(folder, state_dict=state)

    on_main_process(write)
    model: CM3ForCausalLM = adapted.merge_and_unload()
    return model
