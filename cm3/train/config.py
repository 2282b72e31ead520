"""`TrainConfig`: every setting of a training run, as a section of a run file. Imports no torch.

Flows in: a TOML section or keyword arguments. Flows out: an immutable record that `train` reads and every checkpoint repeats.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from cm3.core.runfile import RunConfig

_IDLE_BESIDE_SCHEDULE = {
    "constant": ("min_lr_ratio", "decay_fraction", "power"),
    "cosine": ("decay_fraction", "power"),
    "wsd": ("power",),
    "polynomial": ("decay_fraction",),
}


class TrainConfig(RunConfig):
    """Settings of one run of `cm3.train.loop.train`.

    Length: `steps` optimizer updates; each sees `accumulation_steps` micro-batches on every process.
    Optimizer: `optimizer` "adamw", or "muon" for hidden matrices with AdamW for the rest; a parameter group's own "lr" or
    "weight_decay" goes before `learning_rate` and `weight_decay`; `clip_norm` None leaves gradients as they are.
    Schedule: linear warm-up over `warmup_steps`, fewer than `steps`, then `schedule` over the steps that are left, down towards
    `min_lr_ratio` times the learning rate, which the update after the last would have; "wsd" decays linearly over the last
    `decay_fraction` of those steps; "polynomial" decays with exponent `power`.
    Averaging: `ema_decay` keeps an exponential moving average of the weights, which evaluation then uses.
    Numbers: `precision` "auto" is bf16 autocast on a GPU and on a CPU with AMX, fp32 elsewhere (where bf16 is emulated);
    `compile` runs every trained module through torch.compile; `device` "cpu" ignores a GPU.
    Memory: `activation_checkpointing` keeps only the inputs of every block and computes the rest again in the backward pass;
    `sharding` "full" spreads weights, gradients and optimizer states over all processes (FSDP2), "none" gives each a copy (DDP).
    Spikes: a loss more than `spike_sigma` deviations above the recent ones (`cm3.train.spikes`) is told of with `on_spike`
    "warn"; with "skip" no update is made from it, and the fourth in a row ends the run; with "ignore" nothing happens.
    Habits: save every `checkpoint_every` steps (0: only at the end or when stopped) and keep the newest `keep_checkpoints`;
    evaluate every `eval_every` steps (0: only at the end); log a record every `log_every` steps; `async_save` writes checkpoints
    from a copy while training goes on; `tensorboard` also writes TensorBoard events when that package is installed, `wandb` names
    the Weights & Biases project to log to (that package must be installed).
    `peak_tflops`: what one device can do at most, for model FLOP utilization (None: known for common GPUs).
    """

    model_config = ConfigDict(allow_inf_nan=False)

    steps: int = Field(1000, ge=1)
    seed: int = Field(0, ge=0, lt=2**63)
    accumulation_steps: int = Field(1, ge=1)

    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.1, ge=0)
    clip_norm: float | None = Field(1.0, gt=0)

    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "cosine", "wsd", "polynomial"] = "cosine"
    decay_fraction: float = Field(0.2, ge=0, le=1)
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    power: float = Field(1.0, gt=0)

    on_spike: Literal["ignore", "warn", "skip"] = "warn"
    spike_sigma: float = Field(6.0, gt=0)

    ema_decay: float | None = Field(None, ge=0, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    device: Literal["auto", "cpu"] = "auto"
    activation_checkpointing: bool = False
    sharding: Literal["none", "full"] = "none"

    checkpoint_every: int = Field(500, ge=0)
    keep_checkpoints: int = Field(2, ge=1)
    eval_every: int = Field(0, ge=0)
    log_every: int = Field(10, ge=1)
    async_save: bool = False
    tensorboard: bool = True
    wandb: str | None = None
    peak_tflops: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _all_are_used(self) -> TrainConfig:
        self._refuse_idle("schedule", _IDLE_BESIDE_SCHEDULE)
        self._refuse_idle("on_spike", {"ignore": ("spike_sigma",)})
        return self

    @model_validator(mode="after")
    def _one_way_of_saving(self) -> TrainConfig:
        if self.async_save and self.sharding == "full":
            raise ValueError("async_save copies the state of one process; it cannot be used with sharding = 'full'")
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> TrainConfig:
        if self.warmup_steps >= self.steps and self.warmup_steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} don't end within steps={self.steps}; set fewer warmup_steps, or more steps"
            )
        return self

    @model_validator(mode="after")
    def _betas_below_one(self) -> TrainConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        return self
